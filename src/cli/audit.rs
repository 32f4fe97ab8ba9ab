//! `opi-spdk audit`: checks audit logs.

use std::fs::File;
use std::io::{self, BufReader, ErrorKind, Read};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use crate::state::StateKey;
use crate::telemetry::KeptHead;
use crate::telemetry::chain::{Hasher, Head, Outcome, Verifier};

/// Findings printed before the rest is only counted.
const PRINTED: usize = 100;

/// `opi-spdk audit`.
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, clap::Subcommand)]
enum Command {
    /// Find lines that were changed, removed, added or reordered; exit status 1 if there are any
    Verify(Verify),
}

#[derive(Debug, clap::Args)]
struct Verify {
    /// File with the audit key that opi-spdk was started with
    #[arg(long, value_name = "FILE")]
    audit_key_file: Option<PathBuf>,
    /// Number and hash of a line that must be present, as printed by an earlier run for its last line
    #[arg(long, value_name = "NUMBER:HASH")]
    kept: Option<Head>,
    /// Log files, oldest first; - is the standard input. The last one has to reach the line that FILE.head has
    #[arg(value_name = "FILE", required = true)]
    files: Vec<PathBuf>,
}

/// Runs the subcommand.
///
/// # Errors
/// One line for the operator.
pub fn run(args: Args) -> Result<ExitCode, String> {
    let Command::Verify(verify) = args.command;
    let outcome = verify.read()?;
    let Some((from, last)) = outcome.range.filter(|_| outcome.findings.is_empty()) else {
        let more = outcome.findings.len().saturating_sub(PRINTED);
        let mut text = String::new();
        for finding in outcome.findings.iter().take(PRINTED) {
            text.push_str(finding);
            text.push('\n');
        }
        if more > 0 {
            text.push_str(&format!("{more} more\n"));
        }
        super::print(&text)?;
        return Err(match outcome.findings.len() {
            0 => "no line of an audit log is there".to_owned(),
            1 => "audit log: 1 fault".to_owned(),
            many => format!("audit log: {many} faults"),
        });
    };
    for note in &outcome.notes {
        super::print(&format!("{note}\n"))?;
    }
    let lines = outcome.lines;
    super::print(&format!(
        "whole: {lines} lines from {from}, the last is {last}\n"
    ))?;
    Ok(ExitCode::SUCCESS)
}

/// How long a running writer is given to complete the last line, which it writes in one piece, and between two looks.
const COMPLETION: Duration = Duration::from_secs(1);
const LOOK: Duration = Duration::from_millis(20);

/// A file whose last line may be being written: it ends when that line does, or at a timeout.
struct Growing {
    file: File,
    /// The last line read so far has no newline.
    unfinished: bool,
    waited: Duration,
}

impl Growing {
    fn new(file: File) -> Self {
        Self {
            file,
            unfinished: false,
            waited: Duration::ZERO,
        }
    }
}

impl Read for Growing {
    fn read(&mut self, bytes: &mut [u8]) -> io::Result<usize> {
        loop {
            let read = self.file.read(bytes)?;
            if read > 0 {
                let end = bytes.get(..read).unwrap_or_default();
                self.unfinished = !end.ends_with(b"\n");
                return Ok(read);
            }
            if !self.unfinished || self.waited >= COMPLETION {
                return Ok(0);
            }
            std::thread::sleep(LOOK);
            self.waited += LOOK;
        }
    }
}

impl Verify {
    fn read(&self) -> Result<Outcome, String> {
        let key = self.audit_key_file.as_deref().map(|path| {
            let key = StateKey::read(path);
            key.map_err(|reason| format!("audit-key-file {}: {reason}", path.display()))
        });
        let key = key.transpose()?;
        let mut verifier = Verifier::new(Hasher::new(key.as_ref()), self.kept);
        // Before the log is read, which may grow meanwhile.
        let last = self.files.last().filter(|last| *last != Path::new("-"));
        let beside = last.map(|last| KeptHead::of(last));
        let known = match beside.as_ref().map(KeptHead::read).transpose() {
            // Whoever may read the log need not be allowed to read that.
            Err(error) if error.kind() == ErrorKind::PermissionDenied => None,
            known => known.map_err(|error| error.to_string())?.flatten(),
        };
        if let (Some(beside), Some(known)) = (&beside, known) {
            verifier.reaches(known, &beside.path().display().to_string());
        }
        for path in &self.files {
            let name = path.display().to_string();
            if path == Path::new("-") {
                verifier.read("-", std::io::stdin().lock())?;
            } else {
                let file = File::open(path).map_err(|error| format!("{name}: {error}"))?;
                verifier.read(&name, BufReader::new(Growing::new(file)))?;
            }
        }
        let mut outcome = verifier.finish();
        if known.is_none() {
            let file = beside.map_or("FILE.head".into(), |it| it.path().display().to_string());
            outcome.notes.push(format!(
                "{file} is not there, or not readable: lines that are missing at the end go unnoticed without --kept"
            ));
        }
        Ok(outcome)
    }
}
