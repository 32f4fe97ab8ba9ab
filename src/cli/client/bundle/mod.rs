//! `opi-spdk bundle`: collects what a bug report needs into one file.

mod machine;

use std::fs::{File, OpenOptions};
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use ruzstd::encoding::{CompressionLevel, compress};
use serde_json::Value as Json;

use super::http::Http;
use super::metrics::Scrape;
use super::{Connect, Connection, Failure, failure::plain, get, hosts, output, watch};
use crate::cli::print;
use crate::config::VERSION;

/// Events collected at most: as many as a server keeps.
const EVENTS: usize = 4096;

/// The metric with the server's version.
const BUILD_INFO: &str = "opi_spdk_build_info";

/// The event backlog counts as fully received after this long without an event.
const QUIET: Duration = Duration::from_millis(500);

/// `opi-spdk bundle`.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "The file is a tar archive, compressed with zstd, that its owner alone can read. Keys are not in it. \
                  What cannot be read is told in problems.txt there; a server that does not answer too."
)]
pub struct Args {
    /// The file to write, such as opi-spdk.tar.zst; an existing file is not overwritten
    file: PathBuf,
    #[command(flatten)]
    connect: Connect,
    #[command(flatten)]
    http: Http,
}

/// Contents of the archive under construction.
struct Bundle {
    archive: tar::Builder<Vec<u8>>,
    made: u64,
    problems: String,
}

/// Runs the subcommand.
pub(super) async fn run(args: Args) -> Result<(), Failure> {
    let scraper = args.http.scraper(&args.connect)?;
    let output = create(&args.file).map_err(Failure::Here)?;
    let mut bundle = Bundle::new();
    match args.connect.connect().await {
        Ok(connection) => bundle.add_server(&connection).await,
        // Wrong settings are the user's error; an unreachable server is a finding for the bundle.
        Err(failure @ Failure::Unreachable { .. }) => bundle.problem("server", &failure),
        Err(failure) => {
            discard(&args.file);
            return Err(failure);
        }
    }
    let metrics = scraper.metrics().await;
    bundle.add("version.txt", versions(&metrics).as_bytes());
    match metrics {
        Ok(text) => bundle.add("metrics.txt", text.as_bytes()),
        Err(reason) => bundle.problem("metrics", &reason),
    }
    machine::collect(&mut bundle);
    let problems = bundle.problems.clone();
    let written = bundle.write(output);
    if let Err(error) = written {
        discard(&args.file);
        let file = args.file.display();
        return Err(Failure::Here(format!("{file}: {error}")));
    }
    for problem in problems.lines() {
        eprintln!("opi-spdk: {problem}");
    }
    let done = format!("{} written\n", args.file.display());
    print(&done).map_err(Failure::Here)
}

/// Creates the output file, which must not exist.
fn create(file: &Path) -> Result<File, String> {
    let created = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(file);
    created.map_err(|error| match error.kind() {
        std::io::ErrorKind::AlreadyExists => {
            format!(
                "{}: it is there already, and is not overwritten",
                file.display()
            )
        }
        _ => format!("{}: {error}", file.display()),
    })
}

/// The versions of the server, which its metrics have, and of this client: they may differ.
fn versions(metrics: &Result<String, String>) -> String {
    let server = match metrics {
        Err(reason) => format!("unknown: {}", plain(reason)),
        Ok(text) => {
            let scrape = Scrape::parse(text, Instant::now());
            match scrape.of(BUILD_INFO) {
                [build, ..] => {
                    let [version, spdk] = ["version", "spdk"].map(|name| build.label(name));
                    format!("{} with {}", plain(version), plain(spdk))
                }
                [] => format!("unknown: its metrics have no {BUILD_INFO}"),
            }
        }
    };
    format!("server: {server}\nclient: {}\n", VERSION.as_str())
}

/// Removes the incomplete output file.
fn discard(file: &Path) {
    let _ = std::fs::remove_file(file);
}

impl Bundle {
    fn new() -> Self {
        let since = SystemTime::now().duration_since(UNIX_EPOCH);
        Self {
            archive: tar::Builder::new(Vec::new()),
            made: since.map_or(0, |since| since.as_secs()),
            problems: String::new(),
        }
    }

    fn add(&mut self, name: &str, content: &[u8]) {
        let mut header = tar::Header::new_gnu();
        header.set_size(content.len() as u64);
        header.set_mode(0o600);
        header.set_mtime(self.made);
        let added = self
            .archive
            .append_data(&mut header, format!("opi-spdk/{name}"), content);
        if let Err(error) = added {
            self.problem(name, &error);
        }
    }

    fn add_json(&mut self, name: &str, objects: Result<Vec<Json>, Failure>) {
        let text = objects.and_then(|all| output::structured(output::Form::Json, all, false));
        match text {
            Ok(text) => self.add(name, text.as_bytes()),
            Err(failure) => self.problem(name, &failure),
        }
    }

    fn problem(&mut self, what: &str, why: &dyn std::fmt::Display) {
        self.problems += &format!("{what}: {}\n", plain(&why.to_string()));
    }

    /// Adds the server's answers: records without keys, conditions, hosts and the latest events.
    async fn add_server(&mut self, connection: &Connection) {
        let records = get::everything(connection).await;
        let records = records.and_then(|all| all.iter().map(output::object).collect());
        self.add_json("records.json", records);
        let objects = watch::all(connection).await;
        let revision = objects.as_ref().map_or(0, |(_, revision)| *revision);
        let objects = objects.and_then(|(all, _)| all.iter().map(output::json_object).collect());
        self.add_json("objects.json", objects);
        let hosts = hosts::all(connection, "").await;
        let hosts = hosts.and_then(|all| all.iter().map(output::json_object).collect());
        self.add_json("hosts.json", hosts);
        let events = watch::last(connection, revision, EVENTS, QUIET).await;
        let events = events.and_then(|all| all.iter().map(output::json_object).collect());
        self.add_json("events.json", events);
    }

    fn write(mut self, mut output: File) -> std::io::Result<()> {
        let problems = std::mem::take(&mut self.problems);
        self.add("problems.txt", problems.as_bytes());
        let archive = self.archive.into_inner()?;
        let mut compressed = Vec::new();
        compress(
            archive.as_slice(),
            &mut compressed,
            CompressionLevel::Fastest,
        );
        output.write_all(&compressed)?;
        output.sync_all()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_that_is_there_is_not_overwritten_and_a_new_one_is_the_owner_s_alone() {
        use std::os::unix::fs::PermissionsExt;
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("a.tar.zst");
        let made = create(&file).unwrap();
        let mode = made.metadata().unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        assert!(create(&file).unwrap_err().ends_with("is not overwritten"));
        assert!(create(&dir.path().join("none/a")).is_err());
    }

    #[test]
    fn the_version_is_that_of_the_server_beside_that_of_the_client() {
        let text = "opi_spdk_build_info{version=\"9.8\",spdk=\"SPDK v7\"} 1\n".to_owned();
        let client = format!("\nclient: {}\n", VERSION.as_str());
        let told = versions(&Ok(text));
        assert_eq!(told, format!("server: 9.8 with SPDK v7{client}"));
        let told = versions(&Err("no answer".to_owned()));
        assert_eq!(told, format!("server: unknown: no answer{client}"));
        let told = versions(&Ok("up 1\n".to_owned()));
        assert!(told.starts_with("server: unknown: its metrics have no opi_spdk_build_info\n"));
    }

    #[test]
    fn what_is_written_can_be_read_again() {
        use std::io::Read;
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("a.tar.zst");
        let mut bundle = Bundle::new();
        bundle.add("a.txt", b"content");
        bundle.problem("b", &"why\u{1b}");
        bundle.write(create(&file).unwrap()).unwrap();
        let compressed = File::open(&file).unwrap();
        let decoder = ruzstd::decoding::StreamingDecoder::new(compressed).unwrap();
        let mut archive = tar::Archive::new(decoder);
        let mut found = Vec::new();
        for entry in archive.entries().unwrap() {
            let mut entry = entry.unwrap();
            let name = entry.path().unwrap().display().to_string();
            let mut text = String::new();
            entry.read_to_string(&mut text).unwrap();
            found.push((name, text));
        }
        let expected = [
            ("opi-spdk/a.txt".to_owned(), "content".to_owned()),
            ("opi-spdk/problems.txt".to_owned(), "b: why \n".to_owned()),
        ];
        assert_eq!(found, expected);
    }
}
