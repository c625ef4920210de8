//! Bounds on a HOCON file's substitutions, which the parser follows without any.

use hocon::{Token, TokenKind};

use super::scan::Refused;

/// `${...}` that read from the file itself. Each can multiply a value's size, which makes
/// the bound exponential in this number: 3^(16/3) times the file's size at worst.
const MOST_INTERNAL: usize = 16;
/// `${...}` that can only read the environment.
const MOST_EXTERNAL: usize = 256;

/// A substitution: the field in whose value it stands, and the path that it reads.
pub(super) struct Read {
    pub(super) field: Vec<String>,
    pub(super) source: Vec<String>,
    pub(super) line: usize,
}

impl Read {
    /// Whether resolving this may need the value of `other`.
    fn needs(&self, other: &Read) -> bool {
        self.source.iter().zip(&other.field).all(|(a, b)| a == b)
    }
}

/// Refuses substitutions that read each other or themselves. The parser's own check misses some
/// (`r.a = ${r.b}` with `r.b = ${r.a}`) and then recurses until the stack ends.
pub(super) fn refuse_circles(reads: &[Read]) -> Result<(), Refused> {
    // Those that need nothing unresolved fall away, round by round; a circle is what remains.
    let mut rest: Vec<&Read> = reads.iter().collect();
    loop {
        let before = rest.len();
        let waiting = rest.clone();
        rest.retain(|read| waiting.iter().any(|other| read.needs(other)));
        match rest.first() {
            None => return Ok(()),
            Some(read) if rest.len() == before => {
                let expected = "no circle";
                return Err(Refused {
                    line: read.line,
                    found: "substitutions that read each other",
                    expected,
                });
            }
            Some(_) => {}
        }
    }
}

/// Refuses more substitutions than could be resolved in reasonable time and memory.
pub(super) fn bound_substitutions(tokens: &[Token]) -> Result<(), Refused> {
    let mut words = String::new();
    for token in tokens {
        match token.kind {
            TokenKind::Substitution => {}
            TokenKind::Unquoted | TokenKind::QuotedString | TokenKind::TripleQuotedString => {
                words += &token.value
            }
            _ => words.push('\n'),
        }
    }
    let (mut internal, mut external) = (0, 0);
    for token in tokens {
        match &token.subst {
            Some(path) if path.segments.len() == 1 && !words.contains(&path.segments[0].text) => {
                external += 1
            }
            Some(_) => internal += 1,
            None => continue,
        }
        if internal > MOST_INTERNAL || external > MOST_EXTERNAL {
            return Err(Refused {
                line: token.line,
                found: "one substitution too many",
                expected: "at most 16 that read from the file and 256 from the environment",
            });
        }
    }
    Ok(())
}
