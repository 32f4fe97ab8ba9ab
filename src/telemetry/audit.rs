//! The audit log: changes only, one JSON object per line, in a file of the operator's choice.
//!
//! A call only puts its line into a bounded channel, and a writer thread empties it: a slow or full disk costs lines,
//! which are counted and reported, and nothing else. The writer makes the lines a hash chain ([`super::chain`]) that
//! continues across files and restarts.

use std::fs::File;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::time::{Duration, SystemTime};

use serde::Serialize;
use tokio::signal::unix::{SignalKind, signal};

use super::audit_file::open;
use super::calls::Entry;
use super::chain::{Cut, CutNote, Hasher, Head, Tail};
use super::one_line::{Escape, escaped};
use crate::server::RateLimit;

/// Capacity of the channel, in lines.
const CAPACITY: usize = 4096;

/// Timeout for writing the last lines when the process ends.
const FINISH: Duration = Duration::from_millis(500);

enum Message {
    Line(String),
    /// Wakes the writer to check `reopen`.
    Reopen,
    /// Answered when everything sent before has been written.
    Finish(SyncSender<()>),
}

/// Handle to the writer of the audit log.
pub struct Audit {
    sender: SyncSender<Message>,
    shared: Arc<Shared>,
}

struct Shared {
    path: PathBuf,
    reopen: AtomicBool,
    /// Lines that found the channel full, not yet reported.
    lost: AtomicU64,
    /// All lines lost since start.
    lost_ever: AtomicU64,
}

impl Audit {
    /// Opens the file for appending and starts the writer thread. The lines continue the chain that is in the file.
    ///
    /// # Errors
    /// One line for the operator.
    pub fn open(path: &Path, hasher: Hasher) -> Result<Self, String> {
        let fail = |error: io::Error| format!("audit-log {}: {error}", path.display());
        let file = open(path).map_err(fail)?;
        let tail = Tail::of(path, &hasher).map_err(fail)?;
        if tail.unchained {
            tracing::warn!(
                file = %path.display(),
                "audit log: its last lines are no chain: one begins after them"
            );
        }
        tracing::info!(file = %path.display(), last = %tail.head, "audit log goes on");
        let shared = Arc::new(Shared {
            path: path.to_owned(),
            reopen: AtomicBool::new(false),
            lost: AtomicU64::new(0),
            lost_ever: AtomicU64::new(0),
        });
        let (sender, receiver) = sync_channel(CAPACITY);
        let mut writer = Writer {
            file,
            shared: Arc::clone(&shared),
            hasher,
            head: tail.head,
            cut: tail.cut,
            unwritten: 0,
            torn: tail.torn,
            warnings: RateLimit::default(),
        };
        std::thread::Builder::new()
            .name("audit".to_owned())
            .spawn(move || writer.run(&receiver))
            .map_err(fail)?;
        Ok(Self { sender, shared })
    }

    /// Reopens the file at each SIGHUP, which follows its rotation.
    ///
    /// # Errors
    /// One line for the operator.
    pub fn reopen_on_sighup(&self) -> Result<(), String> {
        let mut hangup =
            signal(SignalKind::hangup()).map_err(|error| format!("signals: {error}"))?;
        let (sender, shared) = (self.sender.clone(), Arc::clone(&self.shared));
        tokio::spawn(async move {
            while hangup.recv().await.is_some() {
                shared.reopen.store(true, Ordering::Release);
                // If the channel is full, its messages wake the writer too.
                let _ = sender.try_send(Message::Reopen);
            }
        });
        Ok(())
    }

    /// Queues an entry.
    pub(super) fn write(&self, mut entry: Entry<'_>) {
        entry.time = now();
        match serde_json::to_string(&entry) {
            Ok(line) => self.send(escaped(&line, Escape::Json).into_owned()),
            // Unreachable: strings and numbers always serialize.
            Err(_) => self.lose(),
        }
    }

    fn send(&self, line: String) {
        if self.sender.try_send(Message::Line(line)).is_err() {
            self.lose();
        }
    }

    fn lose(&self) {
        self.shared.lost.fetch_add(1, Ordering::Relaxed);
        self.shared.lost_ever.fetch_add(1, Ordering::Relaxed);
    }

    /// Lines lost since start.
    pub(super) fn lost(&self) -> u64 {
        self.shared.lost_ever.load(Ordering::Relaxed)
    }

    /// Waits until the queued lines are written, up to a timeout.
    pub(super) fn finish(&self) {
        let (done, finished) = sync_channel(1);
        if self.sender.try_send(Message::Finish(done)).is_ok() {
            let _ = finished.recv_timeout(FINISH);
        }
    }
}

fn now() -> String {
    prost_types::Timestamp::from(SystemTime::now()).to_string()
}

struct Writer {
    file: File,
    shared: Arc<Shared>,
    hasher: Hasher,
    /// The last line that was written.
    head: Head,
    /// What was written since then of incomplete lines.
    cut: Option<Cut>,
    /// Lines that failed to be written, not yet noted in the file.
    unwritten: u64,
    /// The file does not end with a newline.
    torn: bool,
    warnings: RateLimit,
}

/// Interval of retries to note lost lines while no new line arrives.
const RETRY: Duration = Duration::from_secs(10);

impl Writer {
    fn run(&mut self, receiver: &Receiver<Message>) {
        self.catch_up();
        loop {
            let message = match self.unwritten {
                0 => receiver.recv().map_err(|_| RecvTimeoutError::Disconnected),
                _ => receiver.recv_timeout(RETRY),
            };
            if self.shared.reopen.swap(false, Ordering::AcqRel) {
                self.reopen();
            }
            match message {
                Ok(Message::Line(line)) => self.line(line),
                Ok(Message::Reopen) | Err(RecvTimeoutError::Timeout) => self.catch_up(),
                Ok(Message::Finish(done)) => {
                    self.catch_up();
                    let _ = done.try_send(());
                }
                Err(RecvTimeoutError::Disconnected) => return,
            }
        }
    }

    fn reopen(&mut self) {
        match open(&self.shared.path) {
            Ok(file) => {
                self.file = file;
                self.torn = false;
                tracing::info!(
                    file = %self.shared.path.display(),
                    last = %self.head,
                    "audit log opened again"
                );
            }
            Err(error) => {
                let file = self.shared.path.display();
                tracing::warn!(%file, %error, "audit log cannot be opened again: the old file goes on");
            }
        }
    }

    fn line(&mut self, line: String) {
        self.catch_up();
        // Invariant: nothing is appended after a gap before the gap is noted.
        let failed = match self.unwritten {
            0 => self.append(&line).err(),
            _ => {
                self.miss();
                return;
            }
        };
        if let Some(error) = failed {
            self.miss();
            self.warn(&error);
        }
    }

    fn miss(&mut self) {
        self.unwritten += 1;
        self.shared.lost_ever.fetch_add(1, Ordering::Relaxed);
    }

    /// Notes the number of lost lines and the incomplete ones in the file, if there are any.
    fn catch_up(&mut self) {
        self.unwritten += self.shared.lost.swap(0, Ordering::Relaxed);
        if self.unwritten == 0 && self.cut.is_none() {
            return;
        }
        let lost = self.unwritten;
        let note = Note {
            time: now(),
            lines_lost: (lost > 0).then_some(lost),
            cut: self.cut.as_ref().map(Cut::note),
        };
        let written = serde_json::to_string(&note)
            .map_err(io::Error::from)
            .and_then(|note| self.append(&note));
        match written {
            Ok(()) => {
                tracing::warn!(
                    lost,
                    "audit log: lines were lost or cut, which the file tells of"
                );
                self.unwritten = 0;
            }
            Err(error) => self.warn(&error),
        }
    }

    fn warn(&mut self, error: &io::Error) {
        if let Some(more) = self.warnings.allow() {
            let (file, lost) = (self.shared.path.display(), self.unwritten);
            tracing::warn!(%file, %error, lost, more, "audit log cannot be written");
        }
    }

    /// Appends an object as the next line of the chain.
    fn append(&mut self, object: &str) -> io::Result<()> {
        let (mut line, head) = self.head.seal(&self.hasher, object);
        let length = line.len();
        line.push('\n');
        if self.torn {
            self.write(b"\n").map_err(|(_, error)| error)?;
            if let Some(cut) = &mut self.cut {
                cut.add(b"\n");
            }
        }
        match self.write(line.as_bytes()) {
            Err((written, error)) if written < length => {
                if let Some(part) = line.as_bytes().get(..written).filter(|it| !it.is_empty()) {
                    let hasher = &self.hasher;
                    self.cut.get_or_insert_with(|| Cut::new(hasher)).add(part);
                }
                return Err(error);
            }
            // Only the newline is missing, which precedes the next line.
            Err(_) | Ok(()) => {}
        }
        self.head = head;
        self.cut = None;
        Ok(())
    }

    /// Writes all bytes. The error has the number of bytes written.
    fn write(&mut self, bytes: &[u8]) -> Result<(), (usize, io::Error)> {
        let mut written = 0;
        while let Some(rest @ [_, ..]) = bytes.get(written..) {
            let error = match self.file.write(rest) {
                Ok(0) => io::ErrorKind::WriteZero.into(),
                Ok(more) => {
                    written += more;
                    self.torn = !bytes.get(..written).is_some_and(|it| it.ends_with(b"\n"));
                    continue;
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => error,
            };
            return Err((written, error));
        }
        Ok(())
    }
}

/// A note of lost and incomplete lines.
#[derive(Serialize)]
struct Note {
    time: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    lines_lost: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    cut: Option<CutNote>,
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::telemetry::audit_file::MODE;
    use crate::telemetry::chain::Verifier;
    use std::os::unix::fs::PermissionsExt;

    fn lines(path: &Path) -> Vec<String> {
        let text = std::fs::read_to_string(path).expect("the file");
        text.lines().map(str::to_owned).collect()
    }

    fn start(path: &Path) -> Audit {
        Audit::open(path, Hasher::Plain).expect("opened")
    }

    fn send(audit: &Audit, number: u32) {
        audit.send(format!("{{\"n\":{number}}}"));
    }

    /// The number of lines of the chain, which must verify.
    fn whole(files: &[&Path]) -> u64 {
        let mut verifier = Verifier::new(Hasher::Plain, None);
        for file in files {
            let text = std::fs::read(file).expect("the file");
            verifier.read("file", &*text).expect("it is read");
        }
        let outcome = verifier.finish();
        assert!(outcome.findings.is_empty(), "{:?}", outcome.findings);
        assert!(outcome.notes.is_empty(), "{:?}", outcome.notes);
        outcome.lines
    }

    #[test]
    fn lines_are_appended_to_a_file_of_the_owner_alone_as_one_chain() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("audit");
        let audit = start(&path);
        send(&audit, 1);
        audit.finish();
        assert!(lines(&path)[0].starts_with("{\"n\":1,\"seq\":1,\"prev\":\"0000"));
        let mode = path.metadata().expect("it is there").permissions().mode();
        assert_eq!(mode & 0o777, MODE);
        let again = start(&path);
        send(&again, 2);
        again.finish();
        assert!(lines(&path)[1].starts_with("{\"n\":2,\"seq\":2,"));
        assert_eq!(whole(&[&path]), 2);
    }

    #[test]
    fn lines_that_a_full_disk_does_not_take_are_counted_in_the_file_that_follows() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("audit");
        std::os::unix::fs::symlink("/dev/full", &path).expect("a link");
        let audit = start(&path);
        for n in 0..3 {
            send(&audit, n);
        }
        audit.finish();
        std::fs::remove_file(&path).expect("removed");
        audit.shared.reopen.store(true, Ordering::Release);
        send(&audit, 4);
        audit.finish();
        let lines = lines(&path);
        assert!(lines[0].contains("\"lines_lost\":3"), "{lines:?}");
        assert!(lines[1].starts_with("{\"n\":4,"), "{lines:?}");
        assert_eq!(whole(&[&path]), 2);
    }

    #[test]
    fn a_line_that_was_cut_is_told_of_in_the_next_one_wherever_the_cut_was() {
        let dir = tempfile::tempdir().expect("a directory");
        let (path, moved) = (dir.path().join("audit"), dir.path().join("audit.1"));
        let audit = start(&path);
        (1..=3).for_each(|n| send(&audit, n));
        audit.finish();
        drop(audit);
        let all = std::fs::read(&path).expect("the file");
        let end_of_two = lines(&path)[..2].iter().map(|it| it.len() + 1).sum();
        for length in end_of_two..=all.len() {
            std::fs::write(&path, &all[..length]).expect("cut");
            let audit = start(&path);
            send(&audit, 4);
            audit.finish();
            drop(audit);
            // A line that lacks only its newline is complete.
            let of_third = match all.len() - length {
                0 | 1 => 1,
                _ => u64::from(length > end_of_two),
            };
            assert_eq!(whole(&[&path]), 3 + of_third, "{length}");

            // Rotated in between.
            std::fs::write(&moved, &all[..length]).expect("cut");
            std::fs::remove_file(&path).expect("removed");
            let audit = start(&path);
            send(&audit, 4);
            audit.finish();
            assert_eq!(whole(&[&moved, &path]), 3 + of_third, "{length}");
        }
    }

    #[test]
    fn parts_of_lines_that_a_full_disk_took_do_not_break_the_chain() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("audit");
        let open_writer = |file| Writer {
            file,
            shared: Arc::new(Shared {
                path: path.clone(),
                reopen: AtomicBool::new(false),
                lost: AtomicU64::new(0),
                lost_ever: AtomicU64::new(0),
            }),
            hasher: Hasher::Plain,
            head: Head::NONE,
            cut: None,
            unwritten: 0,
            torn: false,
            warnings: RateLimit::default(),
        };
        let mut writer = open_writer(open(&path).expect("opened"));
        writer.line("{\"n\":1}".to_owned());
        // Two in a row: a line, and the note about it.
        for part in ["{\"n\":2,\"se", "{\"time\":"] {
            if writer.torn {
                writer.write(b"\n").expect("written");
                writer.cut.as_mut().expect("cut").add(b"\n");
            }
            writer.write(part.as_bytes()).expect("written");
            let cut = writer.cut.get_or_insert_with(|| Cut::new(&Hasher::Plain));
            cut.add(part.as_bytes());
            writer.miss();
        }
        writer.line("{\"n\":3}".to_owned());
        let lines = lines(&path);
        assert_eq!(lines.len(), 5, "{lines:?}");
        assert!(lines[3].contains("\"cut\":{\"bytes\":19,"), "{lines:?}");
        assert_eq!(whole(&[&path]), 3);
    }

    #[test]
    fn what_could_block_is_refused() {
        let dir = tempfile::tempdir().expect("a directory");
        let error = Audit::open(dir.path(), Hasher::Plain)
            .err()
            .expect("a directory is refused");
        assert!(error.starts_with("audit-log "), "{error}");
        let fifo = dir.path().join("fifo");
        let mode = rustix::fs::Mode::from_raw_mode(0o600);
        rustix::fs::mkfifoat(rustix::fs::CWD, &fifo, mode).expect("a FIFO");
        // Without a reader it cannot even be opened.
        assert!(Audit::open(&fifo, Hasher::Plain).is_err());
        let _reader = File::options().read(true).write(true).open(&fifo);
        let error = Audit::open(&fifo, Hasher::Plain)
            .err()
            .expect("a FIFO is refused");
        assert!(error.contains("neither a regular file"), "{error}");
    }
}
