//! The text of a selector -> an expression.
//!
//! ```text
//! or    := and ( "||" and )*
//! and   := unary ( "&&" unary )*
//! unary := "!"* term
//! term  := "(" or ")" | "all(" ")" | "global(" ")" | "has(" label ")" | label operator
//! label := [A-Za-z0-9_./-]{1,512}
//! ```
//!
//! Blanks are space and tab. Literals stand in single or double quotes and know no escapes.

use std::collections::BTreeSet;

use super::expression::Expression;

/// Parentheses within parentheses: more is refused, so that no text exhausts the stack.
const DEEPEST: usize = 100;
const LONGEST_LABEL: usize = 512;

/// Why a text is no selector.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("does not parse at character {}{}: expected {expected}", self.character, self.found())]
pub struct SyntaxError {
    /// Position of the character that is wrong, from 1. One past the last: the text ends too early.
    pub character: usize,
    /// What should stand there.
    pub expected: &'static str,
    /// The text from there on, shortened.
    pub rest: String,
}

impl SyntaxError {
    fn found(&self) -> String {
        if self.rest.is_empty() {
            " (its end)".to_owned()
        } else {
            format!(", before {:?}", self.rest)
        }
    }
}

const TERM: &str = "a label, has(label), all(), ! or (";
const OPERATOR: &str = "an operator after the label: ==, !=, in, not in, contains, starts with or ends with";
const LITERAL: &str = "a value in quotes, as in \"web\"";

/// Reads a selector. An empty one means `all()`.
///
/// # Errors
/// Where the text leaves the grammar.
pub fn parse(text: &str) -> Result<Expression, SyntaxError> {
    let mut parser = Parser {
        text,
        rest: text,
        depth: 0,
    };
    parser.skip_blanks();
    if parser.rest.is_empty() {
        return Ok(Expression::All);
    }
    let expression = parser.or()?;
    if parser.rest.is_empty() {
        Ok(expression)
    } else if parser.rest.starts_with(['\n', '\r']) {
        Err(parser.expected("space or tab: a selector is one line"))
    } else {
        Err(parser.expected("&&, || or the end of the selector"))
    }
}

struct Parser<'a> {
    text: &'a str,
    rest: &'a str,
    depth: usize,
}

type Parsed = Result<Expression, SyntaxError>;

impl<'a> Parser<'a> {
    fn expected(&self, expected: &'static str) -> SyntaxError {
        const SHOWN: usize = 20;
        let read = &self.text[..self.text.len() - self.rest.len()];
        SyntaxError {
            character: read.chars().count() + 1,
            expected,
            rest: self.rest.chars().take(SHOWN).collect(),
        }
    }

    fn skip_blanks(&mut self) {
        self.rest = self.rest.trim_start_matches([' ', '\t']);
    }

    /// Takes the token, and blanks after it, if it comes next.
    fn take(&mut self, token: &str) -> bool {
        let Some(rest) = self.rest.strip_prefix(token) else {
            return false;
        };
        self.rest = rest;
        self.skip_blanks();
        true
    }

    fn or(&mut self) -> Parsed {
        let first = self.and()?;
        if !self.rest.starts_with("||") {
            return Ok(first);
        }
        let mut parts = vec![first];
        while self.take("||") {
            parts.push(self.and()?);
        }
        Ok(Expression::Or(parts))
    }

    fn and(&mut self) -> Parsed {
        let first = self.unary()?;
        if !self.rest.starts_with("&&") {
            return Ok(first);
        }
        let mut parts = vec![first];
        while self.take("&&") {
            parts.push(self.unary()?);
        }
        Ok(Expression::And(parts))
    }

    fn unary(&mut self) -> Parsed {
        let mut negated = false;
        while self.take("!") {
            negated = !negated;
        }
        let term = self.term()?;
        Ok(if negated { Expression::Not(Box::new(term)) } else { term })
    }

    fn term(&mut self) -> Parsed {
        if self.rest.starts_with('(') {
            return self.parentheses();
        }
        if self.take("all(") {
            self.close()?;
            return Ok(Expression::All);
        }
        if self.take("global(") {
            self.close()?;
            return Ok(Expression::Global);
        }
        if self.take("has(") {
            let label = self.label("the name of a label")?;
            self.close()?;
            return Ok(Expression::Has(label));
        }
        let label = self.label(TERM)?;
        self.operation(label)
    }

    fn parentheses(&mut self) -> Parsed {
        if self.depth == DEEPEST {
            return Err(self.expected("no more than 100 parentheses within each other"));
        }
        self.depth += 1;
        self.take("(");
        let inner = self.or()?;
        self.close()?;
        self.depth -= 1;
        Ok(inner)
    }

    fn close(&mut self) -> Result<(), SyntaxError> {
        if self.take(")") {
            Ok(())
        } else {
            Err(self.expected(")"))
        }
    }

    fn label(&mut self, expected: &'static str) -> Result<String, SyntaxError> {
        let is_label = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '.' | '/' | '-');
        let length = self.rest.find(|c| !is_label(c)).unwrap_or(self.rest.len());
        if length == 0 {
            return Err(self.expected(expected));
        }
        if length > LONGEST_LABEL {
            return Err(self.expected("a label of at most 512 characters"));
        }
        let (label, rest) = self.rest.split_at(length);
        self.rest = rest;
        self.skip_blanks();
        Ok(label.to_owned())
    }

    fn operation(&mut self, label: String) -> Parsed {
        if self.take("==") {
            return Ok(Expression::Equals(label, self.literal()?));
        }
        if self.take("!=") {
            return Ok(Expression::NotEquals(label, self.literal()?));
        }
        if self.take("contains") {
            return Ok(Expression::Contains(label, self.literal()?));
        }
        if self.take("in") {
            return Ok(Expression::In(label, self.set()?));
        }
        // Two words, or one.
        for (first, second, which) in [("not", "in", 0), ("starts", "with", 1), ("ends", "with", 2)] {
            let before = self.rest;
            if !self.take(first) {
                continue;
            }
            if !self.take(second) {
                self.rest = before;
                break;
            }
            return Ok(match which {
                0 => Expression::NotIn(label, self.set()?),
                1 => Expression::StartsWith(label, self.literal()?),
                _ => Expression::EndsWith(label, self.literal()?),
            });
        }
        Err(self.expected(OPERATOR))
    }

    fn literal(&mut self) -> Result<String, SyntaxError> {
        let Some(quote) = self.rest.chars().next().filter(|c| matches!(c, '"' | '\'')) else {
            return Err(self.expected(LITERAL));
        };
        let inner = &self.rest[1..];
        let Some(end) = inner.find(quote) else {
            return Err(self.expected("a closing quote for this one"));
        };
        self.rest = &inner[end + 1..];
        self.skip_blanks();
        Ok(inner[..end].to_owned())
    }

    fn set(&mut self) -> Result<BTreeSet<String>, SyntaxError> {
        let mut values = BTreeSet::new();
        if !self.take("{") {
            return Err(self.expected("a set, as in {\"a\", \"b\"}"));
        }
        loop {
            if self.take("}") {
                return Ok(values);
            }
            values.insert(self.literal()?);
            if !self.take(",") && !self.rest.starts_with('}') {
                return Err(self.expected(", or }"));
            }
        }
    }
}
