//! The audit log: changes only, one JSON object per line, in a file of the operator's choice.
//!
//! A call only puts its line into a bounded channel, and a writer thread empties it: a slow or full disk costs lines,
//! which are counted and reported, and nothing else. The writer makes the lines a hash chain ([`super::chain`]) that
//! continues across files and restarts. What the last line is also stands in a file beside it ([`Kept`]), so that lines that
//! are taken away at the end are missed.

use std::fs::File;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::time::{Duration, Instant, SystemTime};

use serde::Serialize;
use tokio::signal::unix::{SignalKind, signal};

use super::audit_file::{Kept, open};
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
    /// Number of the last line that was written.
    last: AtomicU64,
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
        let is_new = is_empty(&file);
        let kept = Kept::beside(path, &file);
        let known = kept.as_ref().and_then(|kept| {
            kept.read().unwrap_or_else(|error| {
                tracing::error!(%error, "audit log: what its last line was cannot be read");
                None
            })
        });
        let missing = known.filter(|known| known.is_missing_in(tail.head));
        let head = match missing {
            // Where the file was rotated away nothing is missing. Otherwise the gap stays visible in the chain.
            Some(known) => {
                if !is_new {
                    tracing::error!(
                        file = %path.display(), last = %tail.head, known = %known,
                        "audit log: lines at its end are missing or were changed"
                    );
                }
                known
            }
            None => tail.head,
        };
        tracing::info!(file = %path.display(), last = %head, "audit log goes on");
        let shared = Arc::new(Shared {
            path: path.to_owned(),
            reopen: AtomicBool::new(false),
            lost: AtomicU64::new(0),
            lost_ever: AtomicU64::new(0),
            last: AtomicU64::new(head.seq()),
        });
        let (sender, receiver) = sync_channel(CAPACITY);
        let mut writer = Writer {
            file,
            shared: Arc::clone(&shared),
            hasher,
            head,
            begins: is_new && head != Head::NONE,
            kept,
            kept_head: None,
            kept_fails: false,
            due: (head != Head::NONE).then(Instant::now),
            // A fragment in an older file is not before the first line of a new one.
            cut: tail.cut.filter(|_| !is_new || missing.is_none()),
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

    /// Number of the last line that was written.
    pub(super) fn last(&self) -> u64 {
        self.shared.last.load(Ordering::Relaxed)
    }

    /// Waits until the queued lines are written, up to a timeout.
    pub(super) fn finish(&self) {
        let (done, finished) = sync_channel(1);
        if self.sender.try_send(Message::Finish(done)).is_ok() {
            let _ = finished.recv_timeout(FINISH);
        }
    }
}

fn is_empty(file: &File) -> bool {
    file.metadata()
        .is_ok_and(|about| about.is_file() && about.len() == 0)
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
    /// The file is a new one of an older chain: a note in it says so before anything else.
    begins: bool,
    kept: Option<Kept>,
    /// The last line that `kept` has.
    kept_head: Option<Head>,
    /// `kept` could not be written, which the log tells once.
    kept_fails: bool,
    /// When `kept` has to be written.
    due: Option<Instant>,
    /// What was written since then of incomplete lines.
    cut: Option<Cut>,
    /// Lines that failed to be written, not yet noted in the file.
    unwritten: u64,
    /// The file does not end with a newline.
    torn: bool,
    warnings: RateLimit,
}

/// For how long [`Kept`] may lack the last lines: those are synced first, which is too slow for each line.
const KEPT_LAG: Duration = Duration::from_secs(1);

/// Interval of retries to note lost lines while no new line arrives.
const RETRY: Duration = Duration::from_secs(10);

impl Writer {
    fn run(&mut self, receiver: &Receiver<Message>) {
        self.catch_up();
        loop {
            let due = self
                .due
                .map(|due| due.saturating_duration_since(Instant::now()));
            let retry = (self.unwritten > 0 || self.begins).then_some(RETRY);
            let message = match due.into_iter().chain(retry).min() {
                None => receiver.recv().map_err(|_| RecvTimeoutError::Disconnected),
                Some(wait) => receiver.recv_timeout(wait),
            };
            if self.shared.reopen.swap(false, Ordering::AcqRel) {
                self.reopen();
            }
            match message {
                Ok(Message::Line(line)) => self.line(line),
                Ok(Message::Reopen) | Err(RecvTimeoutError::Timeout) => self.catch_up(),
                Ok(Message::Finish(done)) => {
                    self.catch_up();
                    self.keep();
                    tracing::info!(last = %self.head, "audit log is written");
                    let _ = done.try_send(());
                }
                Err(RecvTimeoutError::Disconnected) => {
                    self.keep();
                    return;
                }
            }
            if self.due.is_some_and(|due| due <= Instant::now()) {
                self.keep();
            }
        }
    }

    /// Has the last line in [`Kept`], once it and all before it are on the disk.
    fn keep(&mut self) {
        self.due = None;
        let Some(kept) = &self.kept else { return };
        if self.kept_head == Some(self.head) {
            return;
        }
        match self.file.sync_data().and_then(|()| kept.write(self.head)) {
            Ok(()) => {
                self.kept_head = Some(self.head);
                self.kept_fails = false;
            }
            Err(error) => {
                self.due = Some(Instant::now() + RETRY);
                if !std::mem::replace(&mut self.kept_fails, true) {
                    let file = kept.path().display();
                    tracing::warn!(%file, %error, "audit log: what its last line is cannot be kept");
                }
            }
        }
    }

    fn reopen(&mut self) {
        self.keep();
        match open(&self.shared.path) {
            Ok(file) => {
                self.kept = Kept::beside(&self.shared.path, &file);
                self.begins = is_empty(&file) && self.head != Head::NONE;
                self.file = file;
                self.torn = false;
                // Whoever has rotated the log may have rotated that file too.
                self.kept_head = None;
                self.due = (self.head != Head::NONE).then(Instant::now);
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
            0 if !self.begins => self.append(&line).err(),
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
        if self.unwritten == 0 && self.cut.is_none() && !self.begins {
            return;
        }
        let lost = self.unwritten;
        let note = Note {
            time: now(),
            begins: self.begins.then_some(true),
            lines_lost: (lost > 0).then_some(lost),
            cut: self.cut.as_ref().map(Cut::note),
        };
        let written = serde_json::to_string(&note)
            .map_err(io::Error::from)
            .and_then(|line| self.append(&line));
        match written {
            Ok(()) => {
                if note.lines_lost.is_some() || note.cut.is_some() {
                    tracing::warn!(
                        lost,
                        "audit log: lines were lost or cut, which the file tells of"
                    );
                }
                self.unwritten = 0;
                self.begins = false;
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
        self.shared.last.store(head.seq(), Ordering::Relaxed);
        self.cut = None;
        self.due.get_or_insert_with(|| Instant::now() + KEPT_LAG);
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

/// A note of the begin of a file, and of lost and incomplete lines.
#[derive(Serialize)]
struct Note {
    time: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    begins: Option<bool>,
    #[serde(skip_serializing_if = "Option::is_none")]
    lines_lost: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    cut: Option<CutNote>,
}

#[cfg(test)]
mod tests;
