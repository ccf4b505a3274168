//! Questions, and what is answered.

use std::io::{BufRead, Write};

use lockstep_core::{Error, ErrorKind, Result};

use crate::figures::Paint;
use crate::terminal::Changed;

/// Somebody who is asked.
pub struct Asker<R, W> {
    input: R,
    out: W,
    paint: Paint,
}

impl<R: BufRead, W: Write> Asker<R, W> {
    /// Whoever writes to `input` and reads `out`.
    pub fn new(input: R, out: W, paint: Paint) -> Self {
        Asker { input, out, paint }
    }

    /// Says something.
    pub fn say(&mut self, text: &str) {
        // One who does not listen is asked nothing either: the answer says so.
        let _ = self.out.write_all(text.as_bytes());
        let _ = self.out.flush();
    }

    /// Asks until the answer is one. An empty line is the answer `default`, where there is one.
    ///
    /// # Errors
    /// Of kind `Stopping`, when no answers come any more.
    pub fn ask<T>(
        &mut self,
        question: &str,
        default: Option<&str>,
        mut understand: impl FnMut(&str) -> Result<T, String>,
    ) -> Result<T> {
        loop {
            let suggested = default
                .filter(|default| !default.is_empty())
                .map(|default| self.paint.dim(&format!(" [{default}]")))
                .unwrap_or_default();
            self.say(&format!("{}{suggested} ", self.paint.bold(question)));
            let line = self.line()?;
            let answer = match (line.trim(), default) {
                ("", Some(default)) => default,
                (answer, _) => answer,
            };
            match understand(answer) {
                Ok(answer) => return Ok(answer),
                Err(why) => self.say(&format!("  {}\n", self.paint.bad(&why))),
            }
        }
    }

    /// Asks what is answered by yes or no.
    ///
    /// # Errors
    /// As [`Asker::ask`].
    pub fn is_so(&mut self, question: &str) -> Result<bool> {
        let question = format!("{question} (y/N)");
        self.ask(&question, Some(""), |answer| {
            match &*answer.to_lowercase() {
                "y" | "yes" => Ok(true),
                "" | "n" | "no" => Ok(false),
                _ => Err("answer y or n".to_owned()),
            }
        })
    }

    /// Asks for what is not to be seen.
    ///
    /// # Errors
    /// As [`Asker::ask`].
    pub fn secret(&mut self, question: &str) -> Result<String> {
        self.say(&format!("{} ", self.paint.bold(question)));
        let hidden = Changed::hidden();
        let line = self.line();
        // The end of the line was not shown either.
        if hidden.is_some() {
            self.say("\n");
        }
        Ok(line?.trim_end_matches(['\r', '\n']).to_owned())
    }

    fn line(&mut self) -> Result<String> {
        let mut line = String::new();
        let read = self.input.read_line(&mut line).map_err(|error| {
            Error::new(ErrorKind::Storage, "cannot read the answer").source(error)
        })?;
        match read {
            0 => Err(Error::new(
                ErrorKind::Stopping,
                "there are no more answers; nothing is written",
            )),
            _ => Ok(line),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answered<T>(answers: &str, ask: impl Fn(&mut Asker<&[u8], Vec<u8>>) -> T) -> (T, String) {
        let mut asker = Asker::new(answers.as_bytes(), Vec::new(), Paint::default());
        let answer = ask(&mut asker);
        (answer, String::from_utf8(asker.out).expect("text"))
    }

    #[test]
    fn it_asks_until_the_answer_is_one() {
        let number = |answer: &str| {
            let number = answer.parse::<u8>();
            number.map_err(|_| format!("`{answer}` is no number"))
        };
        let (answer, said) = answered("x\n7\n", |asker| asker.ask("How many?", Some("3"), number));
        assert_eq!(answer.expect("an answer"), 7);
        assert_eq!(said, "How many? [3]   `x` is no number\nHow many? [3] ");
        let (answer, _) = answered("\n", |asker| asker.ask("How many?", Some("3"), number));
        assert_eq!(answer.expect("the suggestion"), 3);
        let (answer, _) = answered("", |asker| asker.ask("How many?", Some("3"), number));
        assert_eq!(answer.expect_err("nobody").kind(), ErrorKind::Stopping);
    }

    #[test]
    fn no_is_what_is_not_yes() {
        let is_so = |answers| answered(answers, |asker| asker.is_so("Really?").expect("answers"));
        assert_eq!(is_so("\n"), (false, "Really? (y/N) ".to_owned()));
        assert!(is_so("Yes\n").0);
        assert!(is_so("perhaps\ny\n").0);
        assert!(!is_so("N\n").0);
    }
}
