//! Tables, colours, JSON.

use std::io::{self, Write};

use anstyle::{AnsiColor, Effects, Style};
use serde::Serialize;

use super::{args::Format, error::CliError};
use crate::api::{Problem, Severity};

pub const RED: Style = AnsiColor::Red.on_default();
pub const GREEN: Style = AnsiColor::Green.on_default();
pub const YELLOW: Style = AnsiColor::Yellow.on_default();
pub const BOLD: Style = Style::new().effects(Effects::BOLD);
pub const DIM: Style = Style::new().dimmed();

/// Prints an answer as asked. Colours written by `text` reach only terminals.
///
/// # Errors
/// As of `write`.
pub fn print<T: Serialize>(
    format: Format,
    value: &T,
    text: impl FnOnce(&mut dyn Write) -> io::Result<()>,
) -> Result<(), CliError> {
    let mut stdout = anstream::stdout().lock();
    match format {
        Format::Json => {
            serde_json::to_writer_pretty(&mut stdout, value)?;
            writeln!(stdout)?;
        }
        Format::Text => text(&mut stdout)?,
    }
    stdout.flush()?;
    Ok(())
}

/// `severity: file:line: object: field: message`, one a line, the remedy below it.
///
/// # Errors
/// As of `write`.
pub fn problems(problems: &[Problem], out: &mut dyn Write) -> io::Result<()> {
    for problem in problems {
        let (style, word) = match problem.severity {
            Severity::Error => (RED, "error"),
            Severity::Warning => (YELLOW, "warning"),
        };
        write!(out, "{style}{word}:{style:#} ")?;
        match (&problem.file, problem.line) {
            (Some(file), Some(line)) => write!(out, "{}:{line}: ", file.display())?,
            (Some(file), None) => write!(out, "{}: ", file.display())?,
            (None, _) => {}
        }
        for place in [&problem.object, &problem.field].into_iter().flatten() {
            write!(out, "{place}: ")?;
        }
        writeln!(out, "{}", problem.message)?;
        if !problem.remedy.is_empty() {
            writeln!(out, "  {}", problem.remedy)?;
        }
    }
    Ok(())
}

/// One cell.
#[derive(Clone, Debug, Default)]
pub struct Cell {
    pub text: String,
    pub style: Style,
}

impl Cell {
    pub fn styled(text: impl Into<String>, style: Style) -> Self {
        Self {
            text: text.into(),
            style,
        }
    }
}

impl<T: Into<String>> From<T> for Cell {
    fn from(text: T) -> Self {
        Self {
            text: text.into(),
            style: Style::new(),
        }
    }
}

/// Columns under their headings, as wide as needed. Cells of whole numbers are aligned to the right.
#[derive(Clone, Debug)]
pub struct Table {
    header: Vec<String>,
    rows: Vec<Vec<Cell>>,
}

impl Table {
    pub fn new<T: Into<String>>(header: impl IntoIterator<Item = T>) -> Self {
        Self {
            header: header.into_iter().map(Into::into).collect(),
            rows: Vec::new(),
        }
    }

    /// A row; cells beyond the header's are left out, missing ones are empty.
    pub fn row(&mut self, cells: impl IntoIterator<Item = Cell>) {
        let mut row: Vec<Cell> = cells.into_iter().take(self.header.len()).collect();
        row.resize_with(self.header.len(), Cell::default);
        self.rows.push(row);
    }

    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.rows.is_empty()
    }

    /// # Errors
    /// As of `write`.
    pub fn write(&self, out: &mut dyn Write) -> io::Result<()> {
        let columns = self.header.len();
        let column = |index: usize| self.rows.iter().map(move |row| &row[index]);
        let widths: Vec<usize> = (0..columns)
            .map(|index| {
                column(index)
                    .map(|cell| cell.text.chars().count())
                    .chain([self.header[index].chars().count()])
                    .max()
                    .unwrap_or(0)
            })
            .collect();
        let right: Vec<bool> = (0..columns)
            .map(|index| {
                column(index).all(|cell| cell.text.chars().all(|c| c.is_ascii_digit()))
                    && column(index).any(|cell| !cell.text.is_empty())
            })
            .collect();
        let line = |out: &mut dyn Write, cells: &mut dyn Iterator<Item = (&str, Style)>| -> io::Result<()> {
            for (index, (text, style)) in cells.enumerate() {
                if index > 0 {
                    write!(out, "  ")?;
                }
                let padding = widths[index] - text.chars().count();
                if right[index] {
                    write!(out, "{:padding$}{style}{text}{style:#}", "")?;
                } else {
                    write!(out, "{style}{text}{style:#}")?;
                    if index + 1 < columns {
                        write!(out, "{:padding$}", "")?;
                    }
                }
            }
            writeln!(out)
        };
        line(out, &mut self.header.iter().map(|text| (text.as_str(), BOLD)))?;
        for row in &self.rows {
            line(out, &mut row.iter().map(|cell| (cell.text.as_str(), cell.style)))?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_as_wide_as_their_widest_cell_and_numbers_stand_right() {
        let mut table = Table::new(["POD", "PACKETS", "STATE"]);
        table.row(["prod/web-0".into(), "7".into(), "enforced".into()]);
        table.row(["a".into(), "1234".into()]);
        let mut out = anstream::StripStream::new(Vec::new());
        table.write(&mut out).expect("a vector takes all");
        assert_eq!(
            String::from_utf8(out.into_inner()).expect("text"),
            "POD         PACKETS  STATE\n\
             prod/web-0        7  enforced\n\
             a              1234  \n"
        );
    }
}
