//! The predicate language: a part of SQL's `WHERE`.
//!
//! ```text
//! or      := and { "or" and }
//! and     := not { "and" not }
//! not     := "not" not | "(" or ")" | test
//! test    := operand [ "is" ["not"] "null"
//!                    | ["not"] "in" "(" literal { "," literal } ")"
//!                    | ["not"] "like" string
//!                    | ["not"] "between" literal "and" literal
//!                    | ("=" | "<>" | "!=" | "<" | "<=" | ">" | ">=") operand ]
//! operand := column | literal          -- a bare column is a boolean one
//! column  := name | '"' name '"'       -- unquoted names are folded to lower case
//! literal := 'text' | number | "true" | "false"
//! ```

use super::token::{Parsed, SyntaxError, Token, tokens};

/// Nesting that is accepted: deeper predicates are mistakes or attacks on the stack.
const MAX_DEPTH: usize = 64;

/// A predicate.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Expr {
    And(Vec<Expr>),
    Or(Vec<Expr>),
    Not(Box<Expr>),
    Compare(Operand, Comparison, Operand),
    In(Name, Vec<Literal>),
    IsNull(Name),
    Like(Name, Literal),
    Flag(Name),
}

/// A side of a comparison.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Operand {
    Column(Name),
    Literal(Literal),
}

/// A column as written.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Name {
    pub(crate) text: String,
    /// Character of the predicate at which it begins, from 1.
    pub(crate) at: usize,
}

/// A value as written.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Literal {
    pub(crate) kind: LiteralKind,
    pub(crate) text: String,
    /// Character of the predicate at which it begins, from 1.
    pub(crate) at: usize,
}

/// The kinds of literals.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum LiteralKind {
    Text,
    Number,
    Bool,
}

/// How two values are compared.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Comparison {
    Equal,
    NotEqual,
    Less,
    LessEqual,
    Greater,
    GreaterEqual,
}

impl Comparison {
    /// The same with the sides exchanged.
    pub(crate) fn mirrored(self) -> Self {
        match self {
            Comparison::Equal => Comparison::Equal,
            Comparison::NotEqual => Comparison::NotEqual,
            Comparison::Less => Comparison::Greater,
            Comparison::LessEqual => Comparison::GreaterEqual,
            Comparison::Greater => Comparison::Less,
            Comparison::GreaterEqual => Comparison::LessEqual,
        }
    }
}

/// Parses a predicate.
pub(crate) fn parse(text: &str) -> Parsed<Expr> {
    let mut parser = Parser {
        tokens: tokens(text)?,
        next: 0,
        depth: 0,
    };
    let expr = parser.or()?;
    match parser.peek() {
        Token::End => Ok(expr),
        other => parser.fail(format!(
            "{other} does not belong here; the predicate ends before it"
        )),
    }
}

struct Parser {
    tokens: Vec<(Token, usize)>,
    next: usize,
    depth: usize,
}

impl Parser {
    fn peek(&self) -> &Token {
        // The last token is `End`, and nothing steps over it.
        &self.tokens[self.next.min(self.tokens.len() - 1)].0
    }

    fn at(&self) -> usize {
        self.tokens[self.next.min(self.tokens.len() - 1)].1
    }

    fn take(&mut self) -> (Token, usize) {
        let taken = (self.peek().clone(), self.at());
        self.next += 1;
        taken
    }

    fn fail<T>(&self, problem: impl Into<String>) -> Parsed<T> {
        Err(SyntaxError {
            at: self.at(),
            problem: problem.into(),
        })
    }

    fn keyword(&mut self, keyword: &str) -> bool {
        let found = matches!(self.peek(), Token::Word(word) if word == keyword);
        if found {
            self.next += 1;
        }
        found
    }

    fn symbol(&mut self, symbol: &str) -> bool {
        let found = matches!(self.peek(), Token::Symbol(known) if *known == symbol);
        if found {
            self.next += 1;
        }
        found
    }

    fn or(&mut self) -> Parsed<Expr> {
        let mut terms = vec![self.and()?];
        while self.keyword("or") {
            terms.push(self.and()?);
        }
        Ok(one_or(terms, Expr::Or))
    }

    fn and(&mut self) -> Parsed<Expr> {
        let mut terms = vec![self.not()?];
        while self.keyword("and") {
            terms.push(self.not()?);
        }
        Ok(one_or(terms, Expr::And))
    }

    fn not(&mut self) -> Parsed<Expr> {
        if self.depth == MAX_DEPTH {
            return self.fail(format!(
                "more than {MAX_DEPTH} levels of parentheses and `not`"
            ));
        }
        self.depth += 1;
        let expr = if self.keyword("not") {
            Expr::Not(Box::new(self.not()?))
        } else if self.symbol("(") {
            let inner = self.or()?;
            if !self.symbol(")") {
                return self.fail(format!("a `)` is missing before {}", self.peek()));
            }
            inner
        } else {
            self.test()?
        };
        self.depth -= 1;
        Ok(expr)
    }

    fn test(&mut self) -> Parsed<Expr> {
        let operand = self.operand()?;
        if self.keyword("is") {
            let column = self.column(operand)?;
            let negated = self.keyword("not");
            if !self.keyword("null") {
                return self.fail(format!(
                    "`is` is followed by `null` or `not null`, not by {}",
                    self.peek()
                ));
            }
            return Ok(negate(negated, Expr::IsNull(column)));
        }
        let negated = self.keyword("not");
        if self.keyword("in") {
            let column = self.column(operand)?;
            return Ok(negate(negated, Expr::In(column, self.list()?)));
        }
        if self.keyword("like") {
            let column = self.column(operand)?;
            return Ok(negate(negated, Expr::Like(column, self.literal()?)));
        }
        if self.keyword("between") {
            let between = self.between(operand)?;
            return Ok(negate(negated, between));
        }
        if negated {
            return self.fail(format!(
                "`not` is followed by `in`, `like` or `between`, not by {}",
                self.peek()
            ));
        }
        match self.comparison() {
            Some(comparison) => Ok(Expr::Compare(operand, comparison, self.operand()?)),
            None => self.column(operand).map(Expr::Flag),
        }
    }

    fn between(&mut self, operand: Operand) -> Parsed<Expr> {
        let low = self.literal()?;
        if !self.keyword("and") {
            return self.fail(format!("`between` misses its `and` before {}", self.peek()));
        }
        let high = self.literal()?;
        let compare = |comparison, literal| {
            Expr::Compare(operand.clone(), comparison, Operand::Literal(literal))
        };
        Ok(Expr::And(vec![
            compare(Comparison::GreaterEqual, low),
            compare(Comparison::LessEqual, high),
        ]))
    }

    fn list(&mut self) -> Parsed<Vec<Literal>> {
        if !self.symbol("(") {
            return self.fail(format!(
                "`in` is followed by a list in parentheses, not by {}",
                self.peek()
            ));
        }
        let mut list = vec![self.literal()?];
        while self.symbol(",") {
            list.push(self.literal()?);
        }
        if !self.symbol(")") {
            return self.fail(format!(
                "the list of `in` misses a `,` or `)` before {}",
                self.peek()
            ));
        }
        Ok(list)
    }

    fn comparison(&mut self) -> Option<Comparison> {
        let Token::Symbol(symbol) = self.peek() else {
            return None;
        };
        let comparison = match *symbol {
            "=" => Comparison::Equal,
            "<>" | "!=" => Comparison::NotEqual,
            "<" => Comparison::Less,
            "<=" => Comparison::LessEqual,
            ">" => Comparison::Greater,
            ">=" => Comparison::GreaterEqual,
            _ => return None,
        };
        self.next += 1;
        Some(comparison)
    }

    fn column(&self, operand: Operand) -> Parsed<Name> {
        match operand {
            Operand::Column(name) => Ok(name),
            Operand::Literal(literal) => Err(SyntaxError {
                at: literal.at,
                problem: format!(
                    "a column is expected here, not the value `{}`",
                    literal.text
                ),
            }),
        }
    }

    fn literal(&mut self) -> Parsed<Literal> {
        let (before, at) = (self.next, self.at());
        match self.operand()? {
            Operand::Literal(literal) => Ok(literal),
            Operand::Column(name) => {
                self.next = before;
                Err(SyntaxError {
                    at,
                    problem: format!(
                        "a value is expected here, not the column `{0}`; a text is written '{0}'",
                        name.text
                    ),
                })
            }
        }
    }

    fn operand(&mut self) -> Parsed<Operand> {
        if let Token::Symbol(_) | Token::End = self.peek() {
            return self.fail(format!(
                "a column or a value is expected before {}",
                self.peek()
            ));
        }
        let (token, at) = self.take();
        let literal = |kind, text| Operand::Literal(Literal { kind, text, at });
        Ok(match token {
            Token::Text(text) => literal(LiteralKind::Text, text),
            Token::Number(text) => literal(LiteralKind::Number, text),
            Token::Quoted(text) => Operand::Column(Name { text, at }),
            Token::Word(word) => match word.as_str() {
                "true" | "false" => literal(LiteralKind::Bool, word),
                "null" => {
                    return Err(SyntaxError {
                        at,
                        problem: "nothing equals NULL; write `is null` or `is not null`".to_owned(),
                    });
                }
                "and" | "or" | "not" | "in" | "is" | "like" | "between" => {
                    return Err(SyntaxError {
                        at,
                        problem: format!(
                            "a column or a value is expected before `{word}`; a column of that name is written \"{word}\""
                        ),
                    });
                }
                _ => Operand::Column(Name { text: word, at }),
            },
            Token::Symbol(_) | Token::End => {
                return Err(SyntaxError {
                    at,
                    problem: "a column or a value is expected".to_owned(),
                });
            }
        })
    }
}

/// The only term, or all of them under `all`.
fn one_or(mut terms: Vec<Expr>, all: impl FnOnce(Vec<Expr>) -> Expr) -> Expr {
    match (terms.len(), terms.pop()) {
        (1, Some(only)) => only,
        (_, last) => {
            terms.extend(last);
            all(terms)
        }
    }
}

fn negate(negated: bool, expr: Expr) -> Expr {
    if negated {
        Expr::Not(Box::new(expr))
    } else {
        expr
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn precedence() {
        let with = parse("a or b and not c").expect("valid");
        let without = parse("(a) or ((b) and (not (c)))").expect("valid");
        let shape = |expr: &Expr| format!("{expr:?}").replace(char::is_numeric, "");
        assert_eq!(shape(&with), shape(&without));
    }

    #[test]
    fn errors_point_at_the_character() {
        for (text, at, part) in [
            ("status = ", 10, "expected before the end"),
            ("status == 'x'", 9, "expected before `=`"),
            ("status = 'x", 10, "not closed"),
            ("(a = 1", 7, "`)` is missing"),
            ("a = 1 b", 7, "does not belong"),
            ("a in ()", 7, "expected before `)`"),
            ("a = null", 5, "is null"),
            ("a like b", 8, "'b'"),
            ("total > 1x", 10, "does not belong to a number"),
            ("total > 1e", 9, "exponent"),
            ("a; drop", 2, "not part of the language"),
            ("", 1, "expected before the end"),
            ("order = 1 and in = 2", 15, "\"in\""),
            ("é = 'ü' §", 9, "not part"),
            ("1 is null", 1, "a column is expected"),
            ("a between 1 or 2", 13, "misses its `and`"),
        ] {
            let error = parse(text).expect_err(text);
            assert_eq!(error.at, at, "{text}: {error}");
            assert!(error.problem.contains(part), "{text}: {error}");
        }
    }

    #[test]
    fn nesting_is_bounded() {
        let deep = format!("{}a{}", "(".repeat(100_000), ")".repeat(100_000));
        assert!(parse(&deep).is_err());
        let wide = vec!["a = 1"; 100_000].join(" and ");
        assert!(parse(&wide).is_ok());
    }

    #[test]
    fn quotes_and_case() {
        let Ok(Expr::Compare(Operand::Column(name), _, Operand::Literal(text))) =
            parse("Total = 'it''s'")
        else {
            panic!("a comparison");
        };
        assert_eq!((name.text.as_str(), text.text.as_str()), ("total", "it's"));
        let Ok(Expr::Flag(name)) = parse("\"Tot\"\"al\"") else {
            panic!("a flag");
        };
        assert_eq!(name.text, "Tot\"al");
    }
}
