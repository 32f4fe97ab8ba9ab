//! Tests of the audit log's writer.

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
    let end_of_two: usize = lines(&path)[..2].iter().map(|it| it.len() + 1).sum();
    // After a power loss the file beside the log is behind it.
    let forget = || std::fs::remove_file(dir.path().join("audit.head")).expect("removed");
    for length in end_of_two..=all.len() {
        std::fs::write(&path, &all[..length]).expect("cut");
        forget();
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
        forget();
        let audit = start(&path);
        send(&audit, 4);
        audit.finish();
        // The begin of the file and the cut are in one note.
        let is_cut = length > end_of_two && all.len() - length > 1;
        let wanted = 3 + of_third + u64::from(!is_cut);
        assert_eq!(whole(&[&moved, &path]), wanted, "{length}");
    }
}

#[test]
fn an_added_line_stays_a_fault_when_the_writer_tells_of_it_as_a_cut() {
    let dir = tempfile::tempdir().expect("a directory");
    let path = dir.path().join("audit");
    let audit = start(&path);
    (1..=2).for_each(|n| send(&audit, n));
    audit.finish();
    drop(audit);
    let before = std::fs::read_to_string(&path).expect("the file");
    for (more, is_added) in [
        ("{\"n\":3,\"method\":\"forged\"}", true),
        ("{\"n\":3,\"method\":\"forged\"}\n", true),
        ("{\"n\":3,\"seq\":3,\"prev", false),
        ("{\"n\":3,\"se\n{\"cut\":{\"bytes\":1}", false),
    ] {
        std::fs::write(&path, before.clone() + more).expect("written");
        let audit = start(&path);
        send(&audit, 4);
        audit.finish();
        drop(audit);
        assert!(
            lines(&path)
                .iter()
                .any(|it| it.contains("\"cut\":{\"bytes\":"))
        );
        let told = found(&[&path], None);
        assert_eq!(told.len(), usize::from(is_added), "{more}: {told:?}");
        assert!(
            told.iter()
                .all(|it| it.starts_with("file:3: ") && it.ends_with("it was added")),
            "{told:?}"
        );
        std::fs::remove_file(dir.path().join("audit.head")).expect("removed");
    }
}

#[test]
fn parts_of_lines_that_a_full_disk_took_do_not_break_the_chain() {
    let dir = tempfile::tempdir().expect("a directory");
    let path = dir.path().join("audit");
    let mut writer = writer_of(&path, open(&path).expect("opened"));
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

fn writer_of(path: &Path, file: File) -> Writer {
    Writer {
        file,
        shared: Arc::new(Shared {
            path: path.to_owned(),
            reopen: AtomicBool::new(false),
            lost: AtomicU64::new(0),
            lost_ever: AtomicU64::new(0),
            last: AtomicU64::new(0),
        }),
        hasher: Hasher::Plain,
        head: Head::NONE,
        begins: false,
        kept: None,
        kept_head: None,
        kept_fails: false,
        due: None,
        cut: None,
        unwritten: 0,
        torn: false,
        warnings: RateLimit::default(),
    }
}

/// The findings over files, of which the last one has to reach `known`.
fn found(files: &[&Path], known: Option<Head>) -> Vec<String> {
    let mut verifier = Verifier::new(Hasher::Plain, None);
    if let Some(known) = known {
        verifier.reaches(known, "audit.head");
    }
    for file in files {
        let text = std::fs::read(file).expect("the file");
        verifier.read("file", &*text).expect("it is read");
    }
    verifier.finish().findings
}

fn known(path: &Path) -> Option<Head> {
    Kept::of(path).read().expect("it is read")
}

#[test]
fn lines_that_are_taken_away_at_the_end_are_missed() {
    let dir = tempfile::tempdir().expect("a directory");
    let path = dir.path().join("audit");
    let audit = start(&path);
    (1..=4).for_each(|n| send(&audit, n));
    audit.finish();
    drop(audit);
    let beside = Kept::of(&path);
    let mode = beside.path().metadata().expect("it is there").permissions();
    assert_eq!(mode.mode() & 0o777, MODE);
    assert_eq!(known(&path).map(Head::seq), Some(4));
    assert_eq!(found(&[&path], known(&path)), [""; 0]);

    let all = lines(&path);
    std::fs::write(&path, all[..2].join("\n") + "\n").expect("written");
    let told = found(&[&path], known(&path));
    assert_eq!(
        told,
        ["file:2: lines 3 to 4: missing at the end (2 in all): audit.head has a later line"]
    );
    // The gap stays when the log goes on.
    let audit = start(&path);
    send(&audit, 5);
    audit.finish();
    let told = found(&[&path], known(&path));
    assert_eq!(told, ["file:3: lines 3 to 4: taken out before this line"]);
    std::fs::write(&path, "").expect("written");
    assert_eq!(found(&[&path], known(&path)).len(), 1);
}

#[test]
fn a_rotated_file_goes_on_whatever_the_old_one_is_called() {
    let dir = tempfile::tempdir().expect("a directory");
    let (path, old) = (dir.path().join("audit"), dir.path().join("audit-20261201"));
    let audit = start(&path);
    (1..=2).for_each(|n| send(&audit, n));
    audit.finish();
    drop(audit);
    std::fs::rename(&path, &old).expect("moved away");
    let audit = start(&path);
    (3..=4).for_each(|n| send(&audit, n));
    audit.finish();
    assert_eq!(whole(&[&old, &path]), 5);
    assert!(lines(&path)[0].contains("\"begins\":true,\"seq\":3,"));
    assert_eq!(found(&[&path], known(&path)), [""; 0]);
    // Without its begin the file starts with any line.
    std::fs::write(&path, lines(&path)[1..].join("\n") + "\n").expect("written");
    let told = found(&[&path], known(&path));
    assert_eq!(told.len(), 1, "{told:?}");
    assert!(
        told[0].starts_with("file:1: a file does not begin with line 4"),
        "{told:?}"
    );
}

#[test]
fn what_is_kept_of_the_last_line_is_never_ahead_of_the_disk() {
    let dir = tempfile::tempdir().expect("a directory");
    let path = dir.path().join("audit");
    let mut writer = writer_of(&path, open(&path).expect("opened"));
    writer.kept = Some(Kept::of(&path));
    writer.line("{\"n\":1}".to_owned());
    assert_eq!(known(&path), None);
    writer.keep();
    assert_eq!(known(&path), Some(writer.head));
    // A crash here leaves it behind the log, which is whole.
    writer.line("{\"n\":2}".to_owned());
    assert_eq!(known(&path).map(Head::seq), Some(1));
    assert!(writer.due.is_some());
    assert_eq!(found(&[&path], known(&path)), [""; 0]);
    // A file that cannot be synced.
    writer.file = File::options()
        .write(true)
        .open("/dev/null")
        .expect("opened");
    writer.keep();
    assert_eq!(known(&path).map(Head::seq), Some(1));
}

#[test]
fn the_file_beside_a_log_is_beside_what_a_link_is_to_and_comes_back() {
    let dir = tempfile::tempdir().expect("a directory");
    let (path, link) = (dir.path().join("audit"), dir.path().join("link"));
    std::fs::write(&path, "").expect("written");
    std::os::unix::fs::symlink(&path, &link).expect("linked");
    let audit = start(&link);
    send(&audit, 1);
    audit.finish();
    assert_eq!(known(&path).map(Head::seq), Some(1));
    assert!(!dir.path().join("link.head").exists());
    // Whoever rotates the logs may take it away.
    std::fs::remove_file(dir.path().join("audit.head")).expect("removed");
    audit.shared.reopen.store(true, Ordering::Release);
    audit.sender.send(Message::Reopen).expect("taken");
    audit.finish();
    assert_eq!(known(&link).map(Head::seq), Some(1));
}
