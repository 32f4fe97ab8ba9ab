//! `opi-spdk doctor`: checks whether the machine is fit for opi-spdk.

use std::path::PathBuf;
use std::process::ExitCode;

use serde_json::json;

use super::print;
use crate::config::CommandLine;
use crate::doctor::{self, Finding, Level};
use crate::machine::Machine;

/// `opi-spdk doctor`.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Exit status: 0, 1 if something keeps opi-spdk from starting or working, 2 for a wrong \
                        command line. Takes all settings, as they are given to opi-spdk."
)]
pub struct Args {
    /// The form of the answer
    #[arg(short, long, value_enum, default_value_t = Output::Text)]
    output: Output,
    /// Treat warnings as errors
    #[arg(long)]
    strict: bool,
    /// Directory to read the machine's files from
    #[arg(long, hide = true, value_name = "DIR", default_value = "/")]
    root: PathBuf,
    #[command(flatten)]
    settings: CommandLine,
}

/// Output format.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Output {
    Text,
    Json,
}

/// Runs the subcommand.
///
/// # Errors
/// A configuration that cannot be used, or an output that cannot be written.
pub fn run(args: Args) -> Result<ExitCode, String> {
    let config = args.settings.resolve().map_err(|error| error.to_string())?;
    let findings = doctor::examine(&Machine::at(args.root), &config);
    let count = |level| findings.iter().filter(|one| one.level == level).count();
    let (errors, warnings) = (count(Level::Error), count(Level::Warning));
    let bad = errors > 0 || (args.strict && warnings > 0);
    print(&match args.output {
        Output::Text => text(&findings, errors, warnings),
        Output::Json => format!(
            "{:#}\n",
            json!({"ok": !bad, "errors": errors, "warnings": warnings, "findings": findings})
        ),
    })?;
    Ok(ExitCode::from(u8::from(bad)))
}

fn text(findings: &[Finding], errors: usize, warnings: usize) -> String {
    let mut text = String::new();
    for finding in findings {
        text += &format!(
            "{:<8} {:<12} {}\n",
            finding.level.word(),
            finding.check,
            finding.what
        );
        if let Some(why) = finding.why {
            text += &format!("{:21} why: {why}\n", "");
        }
        if let Some(fix) = &finding.fix {
            text += &format!("{:21} fix: {fix}\n", "");
        }
    }
    let of = |number, what| match number {
        1 => format!("1 {what}"),
        _ => format!("{number} {what}s"),
    };
    text + &format!("{}, {}\n", of(errors, "error"), of(warnings, "warning"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_is_no_plural() {
        assert_eq!(text(&[], 1, 0), "1 error, 0 warnings\n");
        assert_eq!(text(&[], 2, 1), "2 errors, 1 warning\n");
    }
}
