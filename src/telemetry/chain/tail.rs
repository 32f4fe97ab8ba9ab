//! Finds the end of a file's chain, for the writer to continue it.

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use super::{Cut, Hasher, Head, Line};

/// Bytes at the end of a file that are searched for its last line: lines have a few KiB at most.
const WINDOW: u64 = 1 << 20;

/// The end of a file.
pub(in super::super) struct Tail {
    pub(in super::super) head: Head,
    /// The fragment after the last line of the chain.
    pub(in super::super) cut: Option<Cut>,
    /// The file does not end with a newline.
    pub(in super::super) torn: bool,
    /// The file is not empty, but no line of a chain is near its end.
    pub(in super::super) unchained: bool,
}

impl Tail {
    const NONE: Self = Self {
        head: Head::NONE,
        cut: None,
        torn: false,
        unchained: false,
    };

    /// Reads the tail of this file, or, if it is empty, of `FILE.1`, to which logrotate moves it.
    ///
    /// # Errors
    /// A file cannot be read.
    pub(in super::super) fn of(path: &Path, hasher: &Hasher) -> io::Result<Self> {
        if let Some(tail) = read(path, hasher)? {
            return Ok(tail);
        }
        let mut moved = path.as_os_str().to_owned();
        moved.push(".1");
        let before = match read(&PathBuf::from(moved), hasher) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => None,
            before => before?,
        };
        Ok(before.map_or(Self::NONE, |before| Self {
            torn: false,
            ..before
        }))
    }
}

/// Reads the tail; `None` if the file is empty or not a regular file.
fn read(path: &Path, hasher: &Hasher) -> io::Result<Option<Tail>> {
    let mut options = File::options();
    // The path may be a FIFO or a device, which must not block the open.
    let flags = rustix::fs::OFlags::NONBLOCK | rustix::fs::OFlags::NOCTTY;
    options.read(true).custom_flags(flags.bits().cast_signed());
    let mut file = options.open(path)?;
    let metadata = file.metadata()?;
    if !metadata.is_file() || metadata.len() == 0 {
        return Ok(None);
    }
    file.seek(SeekFrom::Start(metadata.len().saturating_sub(WINDOW)))?;
    let mut end = Vec::new();
    file.take(WINDOW).read_to_end(&mut end)?;
    Ok(Some(parse(&end, hasher)))
}

fn parse(end: &[u8], hasher: &Hasher) -> Tail {
    let torn = !end.ends_with(b"\n");
    let mut upto = end.len();
    // Searches backwards; `upto` is the end of the line to try.
    while upto > 0 {
        let before = end.get(..upto).unwrap_or_default();
        let text = before.strip_suffix(b"\n").unwrap_or(before);
        let begin = text
            .iter()
            .rposition(|b| *b == b'\n')
            .map_or(0, |at| at + 1);
        if let Some(line) = text.get(begin..).and_then(Line::parse) {
            let rest = end.get(upto..).unwrap_or_default();
            let cut = (!rest.is_empty()).then(|| {
                let mut cut = Cut::new(hasher);
                cut.add(rest);
                cut
            });
            return Tail {
                head: line.head(),
                cut,
                torn,
                unchained: false,
            };
        }
        upto = begin;
    }
    Tail {
        torn,
        unchained: true,
        ..Tail::NONE
    }
}
