//! A look at a HOCON file's tokens before they are parsed.
//!
//! The parser is lenient where a configuration should not be, reading a mistake as some other
//! value, and trusts its input's size. What could be misread or could exhaust memory or stack is
//! refused here, with the line. On the way the lines of all keys are noted, for later errors.

use std::collections::{HashMap, HashSet};

use hocon::{Token, TokenKind};

/// Brackets and key segments around a value. The configuration itself needs 5.
const DEEPEST: usize = 32;
/// `${...}` and `+=` that read from the file itself. Each can multiply a value's size, which makes
/// the bound exponential in this number: 3^(16/3) times the file's size at worst.
const MOST_INTERNAL: usize = 16;
/// `${...}` that can only read the environment.
const MOST_EXTERNAL: usize = 256;

/// A fault at a line: what was found, what was expected.
pub(super) struct Refused {
    pub(super) line: usize,
    pub(super) found: &'static str,
    pub(super) expected: &'static str,
}

/// What a scan learnt about the file.
#[derive(Default)]
pub(super) struct Outline {
    /// The line of each key's last definition, by its path.
    pub(super) lines: HashMap<String, usize>,
    /// First segments of the paths that substitutions read.
    pub(super) variables: HashSet<String>,
}

/// Looks through the tokens of `text`, which begins without a byte order mark.
pub(super) fn scan(text: &str, tokens: &[Token]) -> Result<Outline, Refused> {
    let mut scan = Scan {
        outline: Outline::default(),
        open: vec![Level::default()],
        field: Field::default(),
    };
    refuse_attached_comments(text, tokens)?;
    for (index, token) in tokens.iter().enumerate() {
        scan.token(token, tokens.get(index + 1))?;
    }
    bound_substitutions(tokens)?;
    Ok(scan.outline)
}

/// A `{` or `[` that is open, or the file itself.
#[derive(Default)]
struct Level {
    bracket: Option<TokenKind>,
    /// Segments of the whole path to here.
    path: Vec<String>,
    /// Brackets and segments around.
    depth: usize,
}

/// The field or list element that is being read.
#[derive(Default)]
struct Field {
    key: Vec<String>,
    /// The line of `=` or `:`, from which on the value is read.
    separator: Option<usize>,
    /// Whether any token of the value was seen.
    begun: bool,
}

struct Scan {
    outline: Outline,
    open: Vec<Level>,
    field: Field,
}

impl Scan {
    fn token(&mut self, token: &Token, next: Option<&Token>) -> Result<(), Refused> {
        let refuse = |found, expected| {
            Err(Refused {
                line: token.line,
                found,
                expected,
            })
        };
        let in_list = self.level().bracket == Some(TokenKind::LBracket);
        let in_value = in_list || self.field.separator.is_some();
        match &token.kind {
            TokenKind::LBrace | TokenKind::LBracket => return self.open(token),
            TokenKind::RBrace => return self.close(token, TokenKind::LBrace),
            TokenKind::RBracket => return self.close(token, TokenKind::LBracket),
            TokenKind::Comma => self.field = Field::default(),
            // A separator's value may begin on the next line.
            TokenKind::Newline if self.field.separator.is_some() && !self.field.begun => {}
            // A key's brace as well.
            TokenKind::Newline if next.is_some_and(|next| next.kind == TokenKind::LBrace) => {}
            TokenKind::Newline => self.field = Field::default(),
            TokenKind::Equals | TokenKind::PlusEquals if in_value => {
                return refuse(
                    "a second = in one field",
                    "one key and value a line, or a comma between two",
                );
            }
            TokenKind::Colon if in_value => {
                let apart =
                    |token: &Token| token.preceding_space || token.kind == TokenKind::Newline;
                if token.preceding_space || next.is_none_or(apart) || !self.field.begun {
                    return refuse(
                        "a ':' in an unquoted value",
                        "quotes around the value, or a comma between two keys",
                    );
                }
            }
            TokenKind::Equals | TokenKind::PlusEquals | TokenKind::Colon => self.separate(token)?,
            TokenKind::Unquoted if token.value == "include" => {
                return refuse(
                    "include",
                    "everything in one file (a value that is this word: in quotes)",
                );
            }
            TokenKind::Unquoted | TokenKind::QuotedString if !in_value => {
                if token.kind == TokenKind::QuotedString {
                    self.field.key.push(token.value.clone());
                } else {
                    let segments = token.value.split('.').filter(|segment| !segment.is_empty());
                    self.field.key.extend(segments.map(str::to_owned));
                }
                if self.level().depth + self.field.key.len() > DEEPEST {
                    return refuse("a key nested more than 32 deep", "at most 32 levels");
                }
            }
            TokenKind::Unquoted => {
                let own_line =
                    !self.field.begun && self.field.separator.is_some_and(|line| line < token.line);
                if own_line {
                    return refuse(
                        "a value on the line after its key",
                        "the value behind the =, or in quotes",
                    );
                }
                self.field.begun = true;
            }
            TokenKind::Substitution => {
                let path = token.subst.as_ref();
                if path.is_some_and(|path| path.list_suffix) {
                    return refuse("${...[]}", "${...} without []");
                }
                if path.is_some_and(|path| path.segments.len() > DEEPEST) {
                    return refuse(
                        "a substitution of a path more than 32 deep",
                        "at most 32 levels",
                    );
                }
                if let Some(first) = path.and_then(|path| path.segments.first()) {
                    self.outline.variables.insert(first.text.clone());
                }
                self.field.begun = true;
            }
            TokenKind::QuotedString | TokenKind::TripleQuotedString => self.field.begun = true,
            TokenKind::Eof if self.open.len() > 1 => {
                return refuse("the end of the file", "a closing bracket")
            }
            TokenKind::Eof => {}
        }
        Ok(())
    }

    fn level(&self) -> &Level {
        // The file's own level is never closed.
        &self.open[self.open.len() - 1]
    }

    /// The key is complete: its line is noted.
    fn separate(&mut self, token: &Token) -> Result<(), Refused> {
        self.note(token);
        self.field.separator = Some(token.line);
        Ok(())
    }

    fn note(&mut self, token: &Token) {
        if !self.field.key.is_empty() {
            let path = [self.level().path.as_slice(), self.field.key.as_slice()]
                .concat()
                .join(".");
            self.outline.lines.insert(path, token.line);
        }
    }

    fn open(&mut self, token: &Token) -> Result<(), Refused> {
        if self.field.separator.is_none() {
            self.note(token);
        }
        let path = [self.level().path.as_slice(), self.field.key.as_slice()].concat();
        let depth = self.level().depth + self.field.key.len() + 1;
        if depth > DEEPEST {
            let found = "brackets nested more than 32 deep";
            return Err(Refused {
                line: token.line,
                found,
                expected: "at most 32 levels",
            });
        }
        self.open.push(Level {
            bracket: Some(token.kind.clone()),
            path,
            depth,
        });
        self.field = Field::default();
        Ok(())
    }

    fn close(&mut self, token: &Token, bracket: TokenKind) -> Result<(), Refused> {
        if self.level().bracket != Some(bracket) {
            let found = "a closing bracket that closes nothing";
            return Err(Refused {
                line: token.line,
                found,
                expected: "as many brackets closed as opened",
            });
        }
        self.open.pop();
        // What follows on this line belongs to the same value, up to a comma or newline.
        self.field = Field {
            key: Vec::new(),
            separator: Some(token.line),
            begun: true,
        };
        Ok(())
    }
}

/// Refuses `#` or `//` right behind an unquoted word. It begins a comment, but is more often part
/// of the value: of `unix:///run/redis.sock` the parser would read `unix:` alone.
fn refuse_attached_comments(text: &str, tokens: &[Token]) -> Result<(), Refused> {
    let chars: Vec<char> = text.chars().collect();
    let mut starts = vec![0];
    starts.extend(
        chars
            .iter()
            .enumerate()
            .filter(|(_, c)| **c == '\n')
            .map(|(at, _)| at + 1),
    );
    for token in tokens {
        let length = match token.kind {
            TokenKind::Unquoted | TokenKind::Colon => token.value.chars().count(),
            _ => continue,
        };
        let end = starts
            .get(token.line - 1)
            .map_or(chars.len(), |start| start + token.col - 1 + length);
        if matches!(chars.get(end..), Some(['#', ..] | ['/', '/', ..])) {
            return Err(Refused {
                line: token.line,
                found: "a comment right behind an unquoted value",
                expected: "quotes around a value with # or //, or a space before the comment",
            });
        }
    }
    Ok(())
}

fn bound_substitutions(tokens: &[Token]) -> Result<(), Refused> {
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
            None if token.kind == TokenKind::PlusEquals => internal += 1,
            None => continue,
        }
        if internal > MOST_INTERNAL || external > MOST_EXTERNAL {
            return Err(Refused {
                line: token.line,
                found: "one substitution or += too many",
                expected: "at most 16 that read from the file and 256 from the environment",
            });
        }
    }
    Ok(())
}
