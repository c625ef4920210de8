//! A look at a HOCON file's tokens before they are parsed.
//!
//! The parser is lenient where a configuration should not be, reading a mistake as some other
//! value, and trusts its input's size. What could be misread or could exhaust memory or stack is
//! refused here, with the line. On the way the lines of all keys are noted, for later errors.

use std::collections::{HashMap, HashSet};

use hocon::{Token, TokenKind};

use super::substitutions::{bound_substitutions, refuse_circles, Read};

/// Brackets and key segments around a value. The configuration itself needs 5.
const DEEPEST: usize = 32;
/// The parser's time grows with the square of the keys in one map.
const MOST_FIELDS: usize = 500;

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
        open: vec![Level::default()],
        ..Scan::default()
    };
    refuse_attached_comments(text, tokens)?;
    for (index, token) in tokens.iter().enumerate() {
        scan.token(token, tokens.get(index + 1))?;
    }
    bound_substitutions(tokens)?;
    refuse_circles(&scan.reads)?;
    Ok(scan.outline)
}

/// A `{` or `[` that is open, or the file itself.
#[derive(Default)]
struct Level {
    bracket: Option<TokenKind>,
    /// The key whose value this is; empty within a list.
    key: Vec<String>,
    /// Segments of the whole path to here, with `key`.
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
    /// The line of a key behind which the line ended.
    broken: Option<usize>,
}

#[derive(Default)]
struct Scan {
    outline: Outline,
    open: Vec<Level>,
    field: Field,
    fields: usize,
    reads: Vec<Read>,
}

impl Scan {
    fn token(&mut self, token: &Token, next: Option<&Token>) -> Result<(), Refused> {
        let in_list = self.level().bracket == Some(TokenKind::LBracket);
        let in_value = in_list || self.field.separator.is_some();
        match token.kind {
            TokenKind::LBrace | TokenKind::LBracket => self.open(token),
            TokenKind::RBrace => self.close(token, TokenKind::LBrace),
            TokenKind::RBracket => self.close(token, TokenKind::LBracket),
            TokenKind::Comma => self.end_field(),
            TokenKind::Newline => self.newline(token, in_list),
            // The parser makes it a substitution of the key itself, and with other substitutions
            // around recurses until the stack ends.
            TokenKind::PlusEquals => refuse(token, "+=", "= and the whole list"),
            TokenKind::Equals | TokenKind::Colon if !in_value => self.separate(token),
            TokenKind::Equals => refuse(
                token,
                "a second = in one field",
                "one key and value a line, or a comma between two",
            ),
            TokenKind::Colon => self.colon(token, next),
            TokenKind::Unquoted if token.value == "include" => refuse(
                token,
                "include",
                "everything in one file (a value that is this word: in quotes)",
            ),
            TokenKind::Unquoted | TokenKind::QuotedString | TokenKind::TripleQuotedString
                if !in_value =>
            {
                self.key(token)
            }
            TokenKind::Unquoted => self.word(token),
            TokenKind::QuotedString | TokenKind::TripleQuotedString => self.begin_value(),
            TokenKind::Substitution => self.substitution(token),
            TokenKind::Eof => self.end(token),
        }
    }

    fn level(&self) -> &Level {
        // The file's own level is never closed.
        &self.open[self.open.len() - 1]
    }

    /// The path of the field that is being read.
    fn path(&self) -> Vec<String> {
        [self.level().path.as_slice(), self.field.key.as_slice()].concat()
    }

    fn end_field(&mut self) -> Result<(), Refused> {
        self.field = Field::default();
        Ok(())
    }

    fn begin_value(&mut self) -> Result<(), Refused> {
        self.field.begun = true;
        Ok(())
    }

    fn newline(&mut self, token: &Token, in_list: bool) -> Result<(), Refused> {
        if in_list || self.field.begun {
            return self.end_field();
        }
        // The separator or the value may come on the next line.
        if !self.field.key.is_empty() && self.field.separator.is_none() {
            self.field.broken = Some(token.line);
        }
        Ok(())
    }

    fn end(&self, token: &Token) -> Result<(), Refused> {
        if self.open.len() > 1 {
            return refuse(token, "the end of the file", "a closing bracket");
        }
        if self.field.begun || self.field.key.is_empty() {
            return Ok(());
        }
        let line = self
            .field
            .separator
            .or(self.field.broken)
            .unwrap_or(token.line);
        Err(Refused {
            line,
            found: "a key without a value",
            expected: "a value behind the key",
        })
    }

    fn key(&mut self, token: &Token) -> Result<(), Refused> {
        if let Some(line) = self.field.broken {
            let expected = "= or { behind the key";
            return Err(Refused {
                line,
                found: "a key without a value",
                expected,
            });
        }
        if token.preceding_space && !self.field.key.is_empty() {
            return refuse(
                token,
                "a key of several words",
                "= or : between key and value",
            );
        }
        if token.kind == TokenKind::Unquoted {
            let segments = token.value.split('.').filter(|segment| !segment.is_empty());
            self.field.key.extend(segments.map(str::to_owned));
        } else {
            self.field.key.push(token.value.clone());
        }
        self.bound_depth(token)
    }

    /// `=` or `:`: the key is complete.
    fn separate(&mut self, token: &Token) -> Result<(), Refused> {
        self.field.separator = Some(token.line);
        self.note_key(token)
    }

    fn note_key(&mut self, token: &Token) -> Result<(), Refused> {
        if !self.field.key.is_empty() {
            self.outline.lines.insert(self.path().join("."), token.line);
        }
        self.fields += 1;
        if self.fields > MOST_FIELDS {
            return refuse(token, "one key too many", "at most 500 keys");
        }
        Ok(())
    }

    /// A colon within a value, as in `host:port`, stands close and between two words.
    fn colon(&mut self, token: &Token, next: Option<&Token>) -> Result<(), Refused> {
        let apart = |token: &Token| token.preceding_space || token.kind == TokenKind::Newline;
        if token.preceding_space || next.is_none_or(apart) || !self.field.begun {
            let expected = "quotes around the value, or a comma between two keys";
            return refuse(token, "a ':' in an unquoted value", expected);
        }
        Ok(())
    }

    fn word(&mut self, token: &Token) -> Result<(), Refused> {
        let own_line = self.field.separator.is_some_and(|line| line < token.line);
        if own_line && !self.field.begun {
            let expected = "the value behind the =, or in quotes";
            return refuse(token, "a value on the line after its key", expected);
        }
        self.begin_value()
    }

    fn substitution(&mut self, token: &Token) -> Result<(), Refused> {
        let Some(body) = &token.subst else {
            return Ok(());
        };
        if body.list_suffix {
            return refuse(token, "${...[]}", "${...} without []");
        }
        if body.segments.len() > DEEPEST {
            return refuse(
                token,
                "a substitution of a path more than 32 deep",
                "at most 32 levels",
            );
        }
        let source: Vec<String> = body
            .segments
            .iter()
            .map(|segment| segment.text.clone())
            .collect();
        self.outline.variables.extend(source.first().cloned());
        self.reads.push(Read {
            field: self.path(),
            source,
            line: token.line,
        });
        self.begin_value()
    }

    fn open(&mut self, token: &Token) -> Result<(), Refused> {
        if self.field.separator.is_none() {
            self.note_key(token)?;
        }
        self.bound_depth(token)?;
        let path = self.path();
        let depth = self.level().depth + self.field.key.len() + 1;
        let key = std::mem::take(&mut self.field).key;
        self.open.push(Level {
            bracket: Some(token.kind.clone()),
            key,
            path,
            depth,
        });
        Ok(())
    }

    fn close(&mut self, token: &Token, bracket: TokenKind) -> Result<(), Refused> {
        match self.open.pop() {
            Some(level) if level.bracket == Some(bracket) => {
                // What follows on this line belongs to the same value, up to a comma or newline.
                let separator = Some(token.line);
                self.field = Field {
                    key: level.key,
                    separator,
                    begun: true,
                    broken: None,
                };
                Ok(())
            }
            _ => refuse(
                token,
                "a closing bracket that closes nothing",
                "as many brackets closed as opened",
            ),
        }
    }

    fn bound_depth(&self, token: &Token) -> Result<(), Refused> {
        if self.level().depth + self.field.key.len() >= DEEPEST {
            return refuse(
                token,
                "keys or brackets nested more than 32 deep",
                "at most 32 levels",
            );
        }
        Ok(())
    }
}

fn refuse(token: &Token, found: &'static str, expected: &'static str) -> Result<(), Refused> {
    Err(Refused {
        line: token.line,
        found,
        expected,
    })
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
