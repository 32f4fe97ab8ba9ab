//! The audit log: changes alone, one JSON object a line, in a file of the operator's.
//!
//! A call only drops its line into a bounded channel, which a thread of its own writes out: a disk that is
//! slow or full costs lines, which are counted and told of, and nothing else.

use std::fs::File;
use std::io::{self, Write};
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::time::{Duration, SystemTime};

use tokio::signal::unix::{SignalKind, signal};

use super::calls::Entry;
use super::one_line::{Escape, escaped};
use crate::server::RateLimit;

/// Lines that wait for the thread at most.
const CAPACITY: usize = 4096;

/// How long the last lines may take when the process ends.
const FINISH: Duration = Duration::from_millis(500);

/// Open files are not read by others.
const MODE: u32 = 0o600;

enum Message {
    Line(String),
    /// See whether the file is to be opened again.
    Look,
    /// Tell that everything before has been written.
    Finish(SyncSender<()>),
}

/// The way to the audit log.
pub struct Audit {
    sender: SyncSender<Message>,
    shared: Arc<Shared>,
}

struct Shared {
    path: PathBuf,
    reopen: AtomicBool,
    /// Lines that had no place in the channel, since they were last told of.
    lost: AtomicU64,
    /// All lines that were not written, since start.
    lost_ever: AtomicU64,
}

impl Audit {
    /// Opens the file, for what is appended to it, and starts the thread that writes.
    ///
    /// # Errors
    /// One line for the operator.
    pub fn open(path: &Path) -> Result<Self, String> {
        let fail = |error: io::Error| format!("audit-log {}: {error}", path.display());
        let file = open(path).map_err(fail)?;
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
            unwritten: 0,
            torn: false,
            told: RateLimit::default(),
        };
        std::thread::Builder::new()
            .name("audit".to_owned())
            .spawn(move || writer.run(&receiver))
            .map_err(fail)?;
        Ok(Self { sender, shared })
    }

    /// Opens the file again each time that SIGHUP comes: after it has been moved away.
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
                // A full channel has messages that make the thread look, too.
                let _ = sender.try_send(Message::Look);
            }
        });
        Ok(())
    }

    /// Sends an entry on its way.
    pub(super) fn write(&self, mut entry: Entry<'_>) {
        entry.time = now();
        match serde_json::to_string(&entry) {
            Ok(line) => self.send(escaped(&line, Escape::Json).into_owned()),
            // Strings and numbers have a JSON form.
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

    /// Lines that were not written, since start.
    pub(super) fn lost(&self) -> u64 {
        self.shared.lost_ever.load(Ordering::Relaxed)
    }

    /// Waits until what has been sent is written, but not for long.
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

/// Opens a file to append to it, which must not be one that can block a writer.
fn open(path: &Path) -> io::Result<File> {
    let mut options = File::options();
    options.append(true).create(true).mode(MODE);
    // A FIFO that nobody reads would hold up the start.
    let flags = rustix::fs::OFlags::NONBLOCK | rustix::fs::OFlags::NOCTTY;
    options.custom_flags(flags.bits().cast_signed());
    let file = options.open(path)?;
    let kind = file.metadata()?.file_type();
    if !kind.is_file() && !kind.is_char_device() {
        let message = "it is neither a regular file nor a character device";
        return Err(io::Error::new(io::ErrorKind::InvalidInput, message));
    }
    Ok(file)
}

struct Writer {
    file: File,
    shared: Arc<Shared>,
    /// Lines that the file did not take, and that the log and the file have not been told of.
    unwritten: u64,
    /// The file ends with a part of a line.
    torn: bool,
    told: RateLimit,
}

/// How often lines that are lost while nothing else comes are told of.
const LOOK: Duration = Duration::from_secs(10);

impl Writer {
    fn run(&mut self, receiver: &Receiver<Message>) {
        loop {
            let message = match self.unwritten {
                0 => receiver.recv().map_err(|_| RecvTimeoutError::Disconnected),
                _ => receiver.recv_timeout(LOOK),
            };
            if self.shared.reopen.swap(false, Ordering::AcqRel) {
                self.reopen();
            }
            match message {
                Ok(Message::Line(line)) => self.line(line),
                Ok(Message::Look) | Err(RecvTimeoutError::Timeout) => self.catch_up(),
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
                tracing::info!(file = %self.shared.path.display(), "audit log opened again");
            }
            Err(error) => {
                let file = self.shared.path.display();
                tracing::warn!(%file, %error, "audit log cannot be opened again: the old file goes on");
            }
        }
    }

    fn line(&mut self, line: String) {
        self.catch_up();
        // What follows a gap would hide it.
        let failed = match self.unwritten {
            0 => self.append(line).err(),
            _ => {
                self.miss();
                return;
            }
        };
        if let Some(error) = failed {
            self.miss();
            self.tell(&error);
        }
    }

    fn miss(&mut self) {
        self.unwritten += 1;
        self.shared.lost_ever.fetch_add(1, Ordering::Relaxed);
    }

    /// Writes how many lines are missing, if any are.
    fn catch_up(&mut self) {
        self.unwritten += self.shared.lost.swap(0, Ordering::Relaxed);
        if self.unwritten == 0 {
            return;
        }
        let note = serde_json::json!({ "time": now(), "lines_lost": self.unwritten });
        match self.append(note.to_string()) {
            Ok(()) => {
                let lost = self.unwritten;
                tracing::warn!(
                    lost,
                    "audit log: lines were lost, and their number is in the file"
                );
                self.unwritten = 0;
            }
            Err(error) => self.tell(&error),
        }
    }

    fn tell(&mut self, error: &io::Error) {
        if let Some(more) = self.told.allow() {
            let (file, lost) = (self.shared.path.display(), self.unwritten);
            tracing::warn!(%file, %error, lost, more, "audit log cannot be written");
        }
    }

    fn append(&mut self, mut line: String) -> io::Result<()> {
        line.push('\n');
        if self.torn {
            // The part of a line ends as a line of its own.
            line.insert(0, '\n');
        }
        let mut rest = line.as_bytes();
        while !rest.is_empty() {
            match self.file.write(rest) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(written) => {
                    rest = rest.get(written..).unwrap_or_default();
                    self.torn = !rest.is_empty();
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    fn lines(path: &Path) -> Vec<String> {
        let text = std::fs::read_to_string(path).expect("the file");
        text.lines().map(str::to_owned).collect()
    }

    #[test]
    fn lines_are_appended_to_a_file_of_the_owner_alone() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("audit");
        let audit = Audit::open(&path).expect("opened");
        audit.send("one".to_owned());
        audit.finish();
        assert_eq!(lines(&path), ["one"]);
        let mode = path.metadata().expect("it is there").permissions().mode();
        assert_eq!(mode & 0o777, MODE);
        let again = Audit::open(&path).expect("opened again");
        again.send("two".to_owned());
        again.finish();
        assert_eq!(lines(&path), ["one", "two"]);
    }

    #[test]
    fn lines_that_a_full_disk_does_not_take_are_counted_in_the_file_that_follows() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("audit");
        std::os::unix::fs::symlink("/dev/full", &path).expect("a link");
        let audit = Audit::open(&path).expect("opened");
        for n in 0..3 {
            audit.send(n.to_string());
        }
        audit.finish();
        std::fs::remove_file(&path).expect("removed");
        audit.shared.reopen.store(true, Ordering::Release);
        audit.send("after".to_owned());
        audit.finish();
        let lines = lines(&path);
        assert!(lines[0].contains("\"lines_lost\":3"), "{lines:?}");
        assert_eq!(lines[1..], ["after"]);
    }

    #[test]
    fn what_could_block_is_refused() {
        let dir = tempfile::tempdir().expect("a directory");
        let error = Audit::open(dir.path())
            .err()
            .expect("a directory is refused");
        assert!(error.starts_with("audit-log "), "{error}");
        let fifo = dir.path().join("fifo");
        let mode = rustix::fs::Mode::from_raw_mode(0o600);
        rustix::fs::mkfifoat(rustix::fs::CWD, &fifo, mode).expect("a FIFO");
        // Nobody reads it: it cannot even be opened.
        assert!(Audit::open(&fifo).is_err());
        let _reader = File::options().read(true).write(true).open(&fifo);
        let error = Audit::open(&fifo).err().expect("a FIFO is refused");
        assert!(error.contains("neither a regular file"), "{error}");
    }
}
