//! The words and signs of a predicate.

use std::fmt;

/// What is wrong with a predicate, and where.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct SyntaxError {
    /// Character of the predicate, from 1.
    pub(crate) at: usize,
    pub(crate) problem: String,
}

impl fmt::Display for SyntaxError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "character {}: {}", self.at, self.problem)
    }
}

pub(super) type Parsed<T> = Result<T, SyntaxError>;

/// A word, value or sign.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Token {
    /// A word without quotes, folded to lower case: a keyword or a column.
    Word(String),
    /// A quoted column.
    Quoted(String),
    Text(String),
    Number(String),
    Symbol(&'static str),
    End,
}

impl fmt::Display for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Token::Word(word) => write!(f, "`{word}`"),
            Token::Quoted(name) => write!(f, "`\"{name}\"`"),
            Token::Text(text) => write!(f, "`'{text}'`"),
            Token::Number(number) => write!(f, "`{number}`"),
            Token::Symbol(symbol) => write!(f, "`{symbol}`"),
            Token::End => f.write_str("the end"),
        }
    }
}

const SYMBOLS: &[&str] = &["<>", "!=", "<=", ">=", "=", "<", ">", "(", ")", ","];

/// Splits a predicate into tokens, each with the character at which it begins; the last is [`Token::End`].
pub(super) fn tokens(text: &str) -> Parsed<Vec<(Token, usize)>> {
    let chars: Vec<char> = text.chars().collect();
    let mut found = Vec::new();
    let mut at = 0;
    while at < chars.len() {
        let c = chars[at];
        if c.is_whitespace() {
            at += 1;
            continue;
        }
        let (token, end) = match c {
            '\'' => quoted(&chars, at).map(|(text, end)| (Token::Text(text), end))?,
            '"' => quoted(&chars, at).map(|(name, end)| (Token::Quoted(name), end))?,
            c if c.is_alphabetic() || c == '_' => word(&chars, at),
            c if starts_number(&chars, at, c) => number(&chars, at)?,
            _ => symbol(&chars, at)?,
        };
        found.push((token, at + 1));
        at = end;
    }
    found.push((Token::End, chars.len() + 1));
    Ok(found)
}

/// The text between quotes; a doubled quote stands for one.
fn quoted(chars: &[char], start: usize) -> Parsed<(String, usize)> {
    let quote = chars[start];
    let mut text = String::new();
    let mut at = start + 1;
    while let Some(&c) = chars.get(at) {
        if c != quote {
            text.push(c);
            at += 1;
        } else if chars.get(at + 1) == Some(&quote) {
            text.push(c);
            at += 2;
        } else {
            return Ok((text, at + 1));
        }
    }
    Err(SyntaxError {
        at: start + 1,
        problem: format!("the quote {quote} is not closed"),
    })
}

fn word(chars: &[char], start: usize) -> (Token, usize) {
    let belongs = |c: &&char| c.is_alphanumeric() || matches!(c, '_' | '$');
    let word: String = chars[start..].iter().take_while(belongs).collect();
    let end = start + word.chars().count();
    // PostgreSQL folds ASCII letters only, in a UTF-8 database.
    (Token::Word(word.to_ascii_lowercase()), end)
}

fn starts_number(chars: &[char], at: usize, c: char) -> bool {
    let digit = |at: usize| chars.get(at).is_some_and(char::is_ascii_digit);
    match c {
        '0'..='9' => true,
        '.' => digit(at + 1),
        '-' | '+' => digit(at + 1) || (chars.get(at + 1) == Some(&'.') && digit(at + 2)),
        _ => false,
    }
}

fn number(chars: &[char], start: usize) -> Parsed<(Token, usize)> {
    let mut at = start;
    let sign = |at: usize| matches!(chars.get(at), Some('-' | '+'));
    let skip_digits = |mut at: usize| {
        while chars.get(at).is_some_and(char::is_ascii_digit) {
            at += 1;
        }
        at
    };
    if sign(at) {
        at += 1;
    }
    at = skip_digits(at);
    if chars.get(at) == Some(&'.') {
        at = skip_digits(at + 1);
    }
    if matches!(chars.get(at), Some('e' | 'E')) {
        let digits = if sign(at + 1) { at + 2 } else { at + 1 };
        at = skip_digits(digits);
        if at == digits {
            return Err(SyntaxError {
                at: start + 1,
                problem: "the exponent of the number has no digits".to_owned(),
            });
        }
    }
    if chars
        .get(at)
        .is_some_and(|c| c.is_alphanumeric() || matches!(c, '_' | '.'))
    {
        return Err(SyntaxError {
            at: at + 1,
            problem: format!("`{}` does not belong to a number", chars[at]),
        });
    }
    Ok((Token::Number(chars[start..at].iter().collect()), at))
}

fn symbol(chars: &[char], at: usize) -> Parsed<(Token, usize)> {
    let found = SYMBOLS.iter().find(|symbol| {
        let mut rest = chars[at..].iter();
        symbol.chars().all(|c| rest.next() == Some(&c))
    });
    match found {
        Some(symbol) => Ok((Token::Symbol(symbol), at + symbol.len())),
        None => Err(SyntaxError {
            at: at + 1,
            problem: format!(
                "`{}` is not part of the language; there are = <> != < <= > >= in, like, between, is null, and, or, not",
                chars[at]
            ),
        }),
    }
}
