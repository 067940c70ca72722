//! How the demo looks: 96 columns, colours for terminals, plain text for everything else.

use std::{
    io::{self, BufRead as _, IsTerminal as _, Write},
    time::Duration,
};

use anstyle::{AnsiColor, Effects, Style};
use weir_tests::lab::Hosts as _;

use crate::{
    matrix::{Matrix, Reach},
    stage::{Stage, World},
    story::{CAST, Policy, SERVICES, Step},
};

const WIDTH: usize = 96;
const BOLD: Style = Style::new().bold();
const DIM: Style = Style::new().dimmed();
const TITLE: Style = AnsiColor::Cyan.on_default().effects(Effects::BOLD);
const GREEN: Style = AnsiColor::Green.on_default();
const RED: Style = AnsiColor::Red.on_default();
const YELLOW: Style = AnsiColor::Yellow.on_default().effects(Effects::BOLD);

/// Standard output; colours reach terminals only.
pub fn out() -> anstream::AutoStream<io::StdoutLock<'static>> {
    anstream::stdout().lock()
}

/// What the cluster is made of.
pub fn cast<W: World>(stage: &Stage<W>) -> io::Result<()> {
    let world = &stage.world;
    let mut out = out();
    writeln!(out, "\n{TITLE}Weir demo{TITLE:#}  {}\n", world.made_of())?;
    for actor in &CAST {
        let addresses: Vec<String> = match world.hosts().host(actor.name) {
            Ok((_, addresses)) => addresses.iter().map(|address| address.to_string()).collect(),
            Err(_) => Vec::new(),
        };
        let serves: Vec<String> = actor
            .serves
            .iter()
            .map(|(protocol, port)| format!("{port}/{protocol}"))
            .collect();
        writeln!(
            out,
            "  {BOLD}{:17}{BOLD:#} {DIM}{:44}{DIM:#} {:13} {DIM}{}{DIM:#}",
            actor.name,
            addresses.join("  "),
            serves.join(" "),
            world.node(actor.name).unwrap_or_default()
        )?;
    }
    writeln!(
        out,
        "\n  {DIM}$ {}    ready in {:.1} s, cluster included{DIM:#}",
        world.started_by(),
        stage.set_in.as_secs_f32()
    )
}

/// Where a step begins.
pub fn heading(number: usize, steps: usize, step: &Step) -> io::Result<()> {
    let title = format!("── {number} of {steps} · {} ", step.title);
    let rest = WIDTH.saturating_sub(title.chars().count());
    let mut out = out();
    writeln!(out, "\n\n{TITLE}{title}{}{TITLE:#}", "─".repeat(rest))?;
    writeln!(out, "\n{}", step.text)
}

/// A policy, and how soon it held.
pub fn applied(policy: &Policy, how: &str, took: Duration) -> io::Result<()> {
    let mut out = out();
    writeln!(out)?;
    for line in policy.yaml.lines() {
        writeln!(out, "  {DIM}│{DIM:#} {line}")?;
    }
    writeln!(
        out,
        "  {DIM}└ {}.yaml {how} {:.1} ms later{DIM:#}",
        policy.file,
        took.as_secs_f64() * 1000.0
    )
}

/// Who reaches what; what the step changed stands out.
pub fn matrix(matrix: &Matrix, before: Option<&Matrix>) -> io::Result<()> {
    const FIRST: usize = 17;
    const CELL: usize = 18;
    let mut out = out();
    write!(out, "\n  {DIM}{:FIRST$}", "from \\ to")?;
    for service in &SERVICES {
        let name = service.host.rsplit('/').next().unwrap_or(service.host);
        write!(
            out,
            " {:CELL$}",
            format!("{name}:{}/{}", service.port, service.protocol)
        )?;
    }
    writeln!(out, "{DIM:#}")?;
    let mut changed = false;
    for (row, actor) in CAST.iter().enumerate() {
        write!(out, "  {BOLD}{:FIRST$}{BOLD:#}", actor.name)?;
        for (column, &reach) in matrix.rows[row].iter().enumerate() {
            let (style, text) = cell(reach);
            let new = before.is_some_and(|before| before.rows[row][column] != reach);
            changed |= new;
            let mark = if new {
                format!(" {YELLOW}«{YELLOW:#}")
            } else {
                String::new()
            };
            let padding = " ".repeat(CELL.saturating_sub(text.chars().count() + visible(&mark)));
            write!(out, " {style}{text}{style:#}{mark}{padding}")?;
        }
        writeln!(out)?;
    }
    let legend = if changed { "    « changed by this step" } else { "" };
    writeln!(out, "  {DIM}asked on the wire, over IPv4 and IPv6{legend}{DIM:#}")
}

fn cell(reach: Reach) -> (Style, String) {
    let marks = io::stdout().is_terminal();
    match reach {
        Reach::Itself => (DIM, "·".to_owned()),
        Reach::Allowed => (GREEN, if marks { "✔ allowed" } else { "allowed" }.to_owned()),
        Reach::Denied => (RED, if marks { "✘ denied" } else { "denied" }.to_owned()),
        Reach::Odd { v4, v6 } => (YELLOW, format!("v4 {v4}, v6 {v6}")),
    }
}

/// What `weir flows -f` said.
pub fn flows(lines: &[String]) -> io::Result<()> {
    let mut out = out();
    writeln!(out, "\n  {BOLD}$ weir flows -f{BOLD:#}")?;
    for line in lines {
        writeln!(out, "{}", wrapped(line, 2, 6))?;
    }
    Ok(())
}

/// What `weir explain` said.
pub fn explanation(step: &Step, text: &str) -> io::Result<()> {
    let (from, service) = step.question;
    let service = &SERVICES[service];
    let mut out = out();
    writeln!(
        out,
        "\n  {BOLD}$ weir explain {from} {} {}/{}{BOLD:#}",
        service.host, service.port, service.protocol
    )?;
    for line in text.lines() {
        writeln!(out, "{}", wrapped(line, 2, 6))?;
    }
    Ok(())
}

/// Waits for Enter.
pub fn pause() -> io::Result<()> {
    write!(out(), "\n  {DIM}Enter goes on{DIM:#} ")?;
    out().flush()?;
    io::stdin().lock().read_line(&mut String::new()).map(drop)
}

/// The end.
pub fn curtain() -> io::Result<()> {
    writeln!(
        out(),
        "\n\n{GREEN}Every matrix is what its policies say.{GREEN:#} All that was made for them goes with this process.\n"
    )
}

/// Breaks a line between words so that it fits, the rest indented further. Escape sequences take no room.
fn wrapped(line: &str, indent: usize, hang: usize) -> String {
    let mut text = " ".repeat(indent);
    let mut column = indent;
    for word in line.split_inclusive(' ') {
        let width = visible(word);
        if column + visible(word.trim_end()) > WIDTH && column > hang {
            text.truncate(text.trim_end().len());
            text.push('\n');
            text.push_str(&" ".repeat(hang));
            column = hang;
        }
        text.push_str(word);
        column += width;
    }
    text
}

/// Columns that a text takes.
fn visible(text: &str) -> usize {
    anstream::adapter::strip_str(text).to_string().chars().count()
}
