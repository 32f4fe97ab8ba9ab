//! `opi-spdk state`: exports, imports and checks the state directory of a stopped opi-spdk.

use std::fs::File;
use std::io::{BufWriter, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use zeroize::Zeroizing;

use crate::private_dir::lock_state_dir;
use crate::private_memory::keep_out_of_dumps;
use crate::state::{Disk, Entry, StateKey, Store, export};

/// Maximum size of an export to import, in bytes.
const EXPORT_MAX: u64 = 1 << 30;

/// `opi-spdk state`.
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, clap::Subcommand)]
enum Command {
    /// Write the state as JSON
    Export {
        #[command(flatten)]
        place: Place,
        /// Include keys (PSKs, keys of encrypted volumes); state that has keys can only be imported from such an
        /// export
        #[arg(long)]
        with_secrets: bool,
        /// Output file, which must not exist yet; readable by its owner only [default: standard output]
        #[arg(long, value_name = "FILE")]
        output: Option<PathBuf>,
    },
    /// Create the state of an empty state directory from an export, atomically
    Import {
        #[command(flatten)]
        place: Place,
        /// The export; - is the standard input
        #[arg(value_name = "FILE")]
        export: PathBuf,
    },
    /// Read all of the state and report damage with its location; nothing is changed
    Check {
        #[command(flatten)]
        place: Place,
    },
}

/// The state directory and its key.
#[derive(Debug, clap::Args)]
struct Place {
    /// The state directory
    #[arg(long, value_name = "DIR", default_value = "/var/lib/opi-spdk")]
    state_dir: PathBuf,
    /// File with the state's key [default: the credential or the file that opi-spdk uses]
    #[arg(long, value_name = "FILE")]
    state_key_file: Option<PathBuf>,
}

/// Runs the subcommand.
///
/// # Errors
/// One line for the operator.
pub fn run(args: Args) -> Result<ExitCode, String> {
    keep_out_of_dumps()?;
    match args.command {
        Command::Export {
            place,
            with_secrets,
            output,
        } => place.export(with_secrets, output.as_deref()),
        Command::Import { place, export } => place.import(&export),
        Command::Check { place } => place.check(),
    }?;
    Ok(ExitCode::SUCCESS)
}

impl Place {
    /// Locks the directory for the duration of the command.
    fn lock(&self) -> Result<File, String> {
        let dir = &self.state_dir;
        if !dir.is_dir() {
            return Err(format!("state-dir {}: is no directory", dir.display()));
        }
        lock_state_dir(dir)
    }

    fn has_state(&self) -> Result<bool, String> {
        Disk::exists(&self.state_dir)
    }

    fn must_have_state(&self) -> Result<(), String> {
        if self.has_state()? {
            return Ok(());
        }
        Err(format!(
            "state-dir {}: has no state: opi-spdk has not run with it",
            self.state_dir.display()
        ))
    }

    fn key(&self, may_make: bool) -> Result<StateKey, String> {
        let credentials = std::env::var_os("CREDENTIALS_DIRECTORY").map(PathBuf::from);
        let key = StateKey::find(
            &self.state_dir,
            self.state_key_file.as_deref(),
            credentials.as_deref(),
            may_make,
        );
        key.map(|(key, _)| key)
    }

    fn export(&self, secrets: bool, output: Option<&Path>) -> Result<(), String> {
        let _lock = self.lock()?;
        self.must_have_state()?;
        let key = self.key(false)?;
        let mut entries = Vec::new();
        let revision = Disk::check(&self.state_dir, &key, |entry| entries.push(entry))?;
        match output {
            None => {
                let stdout = BufWriter::new(std::io::stdout().lock());
                write(&entries, revision, secrets, stdout, "standard output")
            }
            Some(path) => {
                let name = path.display().to_string();
                let mut options = File::options();
                let file = options.write(true).create_new(true).mode(0o600).open(path);
                let file = file.map_err(|error| format!("{name}: {error}"))?;
                write(&entries, revision, secrets, BufWriter::new(&file), &name)?;
                file.sync_all().map_err(|error| format!("{name}: {error}"))
            }
        }
    }

    fn import(&self, export: &Path) -> Result<(), String> {
        let _lock = self.lock()?;
        let name = export.display();
        let text = read(export).map_err(|error| format!("{name}: {error}"))?;
        let import = export::parse(&text).map_err(|reason| format!("{name}: {reason}"))?;
        let records = import.entries.len();
        let key = self.key(!self.has_state()?)?;
        let store = Disk::open(&self.state_dir, &key)?;
        let runtime = tokio::runtime::Builder::new_current_thread()
            .build()
            .map_err(|error| format!("cannot start: {error}"))?;
        let imported = runtime.block_on(async {
            let there = store.scan("").await.map_err(|error| error.to_string())?;
            if !there.is_empty() {
                return Err(format!(
                    "has {} records already: an import takes a state directory without any",
                    there.len()
                ));
            }
            let committed = store.commit(import.changes(), Vec::new()).await;
            committed.map_err(|error| error.to_string())?;
            store.close().await;
            Ok(())
        });
        imported.map_err(|reason| format!("state-dir {}: {reason}", self.state_dir.display()))?;
        println!("{records} records imported");
        Ok(())
    }

    fn check(&self) -> Result<(), String> {
        let _lock = self.lock()?;
        self.must_have_state()?;
        let mut records = 0;
        let key = self.key(false)?;
        let revision = Disk::check(&self.state_dir, &key, |_| records += 1)?;
        println!("whole: {records} records, revision {revision}");
        Ok(())
    }
}

fn write(
    entries: &[Entry],
    revision: u64,
    secrets: bool,
    mut to: impl Write,
    name: &str,
) -> Result<(), String> {
    export::export(entries, revision, secrets, &mut to)
        .map_err(|reason| format!("{name}: {reason}"))?;
    to.flush().map_err(|error| format!("{name}: {error}"))
}

fn read(path: &Path) -> std::io::Result<Zeroizing<Vec<u8>>> {
    let mut text = Zeroizing::new(Vec::new());
    let read = if path == Path::new("-") {
        std::io::stdin().take(EXPORT_MAX + 1).read_to_end(&mut text)
    } else {
        File::open(path)?
            .take(EXPORT_MAX + 1)
            .read_to_end(&mut text)
    };
    if read? as u64 > EXPORT_MAX {
        return Err(std::io::ErrorKind::FileTooLarge.into());
    }
    Ok(text)
}
