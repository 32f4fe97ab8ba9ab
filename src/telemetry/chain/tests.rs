use proptest::prelude::*;

use super::*;

fn chain(hasher: &Hasher, from: Head, count: u64) -> Vec<String> {
    let mut head = from;
    let mut lines = Vec::new();
    for n in 0..count {
        let (line, next) = head.seal(hasher, &format!(r#"{{"n":{n},"text":"a \"seq\":7"}}"#));
        lines.push(line);
        head = next;
    }
    lines
}

fn keyed() -> Hasher {
    Hasher::new(Some(&StateKey::from([7; 32])))
}

fn verified(hasher: Hasher, files: &[&[String]]) -> Outcome {
    let mut verifier = Verifier::new(hasher, None);
    for (number, lines) in files.iter().enumerate() {
        let mut text = lines.join("\n");
        text.push('\n');
        verifier
            .read(&format!("f{number}"), text.as_bytes())
            .expect("it can be judged");
    }
    verifier.finish()
}

fn findings(lines: &[String]) -> Vec<String> {
    verified(Hasher::Plain, &[lines]).findings
}

fn ten() -> Vec<String> {
    chain(&Hasher::Plain, Head::NONE, 10)
}

#[test]
fn a_chain_is_whole_over_files_with_and_without_a_key() {
    for hasher in [|| Hasher::Plain, keyed] {
        let lines = chain(&hasher(), Head::NONE, 10);
        for cut in 0..=10 {
            let (one, two) = lines.split_at(cut);
            let files: Vec<&[String]> =
                [one, two].into_iter().filter(|it| !it.is_empty()).collect();
            let outcome = verified(hasher(), &files);
            assert!(outcome.findings.is_empty(), "{:?}", outcome.findings);
            let (from, last) = outcome.range.expect("lines");
            assert_eq!((from, last.seq, outcome.lines), (1, 10, 10));
        }
        // Only the later file.
        let outcome = verified(hasher(), &[&lines[4..]]);
        assert_eq!(outcome.findings.len(), 1, "{:?}", outcome.findings);
        assert!(
            outcome.findings[0].starts_with("f0:1: a file does not begin with line 5"),
            "{:?}",
            outcome.findings
        );
        // The same, with its begin. A text that looks like one is none.
        for (object, faults) in [
            (r#"{"n":1,"begins":true}"#, 0),
            (r#"{"n":",\"begins\":true"}"#, 1),
        ] {
            let head = Line::parse(lines[9].as_bytes()).expect("a line").head();
            let (line, _) = head.seal(&hasher(), object);
            let outcome = verified(hasher(), &[&[line]]);
            assert_eq!(outcome.findings.len(), faults, "{:?}", outcome.findings);
            assert!(
                outcome.notes[0].contains("before 11"),
                "{:?}",
                outcome.notes
            );
        }
    }
}

#[test]
fn a_changed_line_is_told_of() {
    for at in 0..10 {
        let mut lines = ten();
        lines[at] = lines[at].replace("text", "tent");
        let found = findings(&lines);
        assert_eq!(found.len(), 1, "{found:?}");
        assert!(
            found[0].starts_with(&format!("f0:{}: was changed", at + 1)),
            "{found:?}"
        );
        // No longer in the chain's format.
        lines[at] = "nothing".to_owned();
        let found = findings(&lines);
        assert_eq!(found.len(), 1, "{found:?}");
        assert!(
            found[0].starts_with(&format!("f0:{}: ", at + 1)),
            "{found:?}"
        );
        assert!(found[0].contains("changed"), "{found:?}");
    }
}

#[test]
fn a_line_that_was_changed_together_with_its_hash_is_told_of_by_the_next() {
    for at in 1..9 {
        let mut lines = ten();
        let before = Line::parse(lines[at - 1].as_bytes())
            .expect("a line")
            .head();
        lines[at] = before.seal(&Hasher::Plain, r#"{"n":"forged"}"#).0;
        let found = findings(&lines);
        assert_eq!(found.len(), 1, "{found:?}");
        let said = format!("f0:{0}: line {0}: was changed", at + 1);
        assert!(found[0].starts_with(&said), "{found:?}");
    }
}

#[test]
fn lines_that_were_taken_out_are_told_of() {
    for (from, to) in [(1, 2), (1, 4), (3, 9), (8, 9)] {
        let mut lines = ten();
        lines.drain(from..to);
        let found = findings(&lines);
        assert_eq!(found.len(), 1, "{found:?}");
        let what = super::report::lines(from as u64 + 1, to as u64);
        let said = format!("f0:{}: {what}: taken out before this line", from + 1);
        assert_eq!(found[0], said);
    }
    // Between two files.
    let lines = ten();
    let found = verified(Hasher::Plain, &[&lines[..3], &lines[5..]]).findings;
    assert_eq!(found, ["f1:1: lines 4 to 5: taken out before this line"]);
}

#[test]
fn added_lines_are_told_of() {
    for at in 1..9 {
        // A copy of a line, and lines that are not of the chain.
        for line in [
            ten()[8].clone(),
            ten()[0].clone(),
            "{}".to_owned(),
            String::new(),
        ] {
            let mut lines = ten();
            lines.insert(at, line);
            let found = findings(&lines);
            assert_eq!(found.len(), 1, "{at}: {found:?}");
            assert!(
                found[0].starts_with(&format!("f0:{}: ", at + 1)),
                "{at}: {found:?}"
            );
            assert!(
                found[0].contains("added") || found[0].contains("anew"),
                "{found:?}"
            );
        }
        // A forged line that continues the line before it.
        let mut lines = ten();
        let before = Line::parse(lines[at - 1].as_bytes())
            .expect("a line")
            .head();
        lines.insert(at, before.seal(&Hasher::Plain, r#"{"n":"forged"}"#).0);
        let found = findings(&lines);
        assert_eq!(found.len(), 1, "{at}: {found:?}");
        assert!(
            found[0].starts_with(&format!("f0:{}: line {0}: added", at + 1)),
            "{found:?}"
        );
    }
}

#[test]
fn moved_lines_are_told_of() {
    for (from, to) in [(2, 5), (5, 2), (8, 3), (0, 9), (9, 0), (3, 9)] {
        let mut lines = ten();
        let line = lines.remove(from);
        lines.insert(to, line);
        let found = findings(&lines);
        assert_eq!(
            found,
            [format!("f0:{}: line {}: moved here", to + 1, from + 1)]
        );
    }
    // Files in the wrong order.
    let lines = ten();
    let found = verified(Hasher::Plain, &[&lines[3..], &lines[..3]]).findings;
    assert_eq!(found, ["f1:1: lines 1 to 3: moved here"]);
}

#[test]
fn a_chain_that_begins_anew_is_told_of() {
    let one = chain(&Hasher::Plain, Head::NONE, 3);
    let two = chain(&Hasher::Plain, Head::NONE, 7);
    for files in [[&one, &two], [&two, &one]] {
        let found = verified(Hasher::Plain, &[files[0], files[1]]).findings;
        assert_eq!(found.len(), 1, "{found:?}");
        assert!(
            found[0].starts_with("f1:1: a chain begins anew"),
            "{found:?}"
        );
    }
}

#[test]
fn with_a_key_lines_of_others_are_told_of() {
    // Rewritten without the key, or with another.
    let others = [Hasher::Plain, Hasher::new(Some(&StateKey::from([8; 32])))];
    for other in others {
        let mut lines = chain(&keyed(), Head::NONE, 4);
        let head = Line::parse(lines[3].as_bytes()).expect("a line").head();
        lines.extend(chain(&other, head, 3));
        let found = verified(keyed(), &[&lines]).findings;
        assert_eq!(found.len(), 3, "{found:?}");
        let mut verifier = Verifier::new(Hasher::Plain, None);
        let error = verifier.read("f", lines.join("\n").as_bytes()).unwrap_err();
        assert!(error.starts_with("f:1: the chain has a key"), "{error}");
    }
}

/// As after a rotation by a version that wrote no begin, or right after any, before the file beside the log follows.
#[test]
fn files_may_begin_right_after_a_line_that_is_known() {
    let ten = ten();
    let last = verified(Hasher::Plain, &[&ten]).range.expect("lines").1;
    let later = chain(&Hasher::Plain, last, 3).join("\n") + "\n";
    let found = |kept, known: Option<Head>, text: &str| {
        let mut verifier = Verifier::new(Hasher::Plain, kept);
        if let Some(known) = known {
            verifier.reaches(known, "FILE.head");
        }
        verifier.read("f", text.as_bytes()).expect("read");
        verifier.finish().findings
    };
    assert_eq!(found(Some(last), Some(last), &later), Vec::<String>::new());
    let told = found(None, Some(last), &later);
    assert!(
        told.len() == 1 && told[0].contains("does not begin with line 11"),
        "{told:?}"
    );
    // What is known is another line, or an older one.
    let other = Head {
        hash: Hash::NONE,
        ..last
    };
    assert_eq!(found(Some(other), None, &later).len(), 2);
    let (_, rest) = later.split_once('\n').expect("lines");
    assert_eq!(found(Some(last), None, rest).len(), 2);
}

#[test]
fn lines_taken_out_at_the_end_are_told_of_by_what_was_kept() {
    let lines = ten();
    let last = verified(Hasher::Plain, &[&lines]).range.expect("lines").1;
    let kept: Head = last.to_string().parse().expect("its own form");
    assert_eq!(kept, last);
    for (left, faults) in [(10, 0), (9, 1)] {
        let mut verifier = Verifier::new(Hasher::Plain, Some(kept));
        verifier
            .read("f", lines[..left].join("\n").as_bytes())
            .expect("read");
        let found = verifier.finish().findings;
        assert_eq!(found.len(), faults, "{found:?}");
        assert!(found.iter().all(|it| it.contains("line 10")), "{found:?}");
    }
    for bad in [
        "",
        "1",
        "1:",
        "x:00",
        "1:zz",
        &format!("1:{}", "A".repeat(64)),
    ] {
        assert!(bad.parse::<Head>().is_err(), "{bad}");
    }
}

#[test]
fn a_last_line_without_newline_is_a_fault_unless_it_is_whole() {
    let found = |more: &str| {
        let mut verifier = Verifier::new(Hasher::Plain, None);
        let text = ten().join("\n") + "\n" + more;
        verifier.read("f", text.as_bytes()).expect("read");
        verifier.finish().findings
    };
    let last = verified(Hasher::Plain, &[&ten()]).range.expect("lines").1;
    let (next, _) = last.seal(&Hasher::Plain, r#"{"n":11}"#);
    assert_eq!(found(&next), [""; 0]);
    for length in 1..next.len() {
        let told = found(&next[..length]);
        let cut =
            told.len() == 1 && told[0].starts_with("f:11: is no whole line, and none after it");
        assert!(cut, "{length}: {told:?}");
    }
    let told = found(r#"{"n":11,"method":"forged"}"#);
    let added =
        told.len() == 1 && told[0].starts_with("f:11: is no line of the chain: it was added");
    assert!(added, "{told:?}");
}

#[test]
fn what_is_no_log_is_refused_without_end() {
    let text = "x\n".repeat(5000);
    let error = Verifier::new(Hasher::Plain, None).read("f", text.as_bytes());
    assert!(error.unwrap_err().contains("faults"));
    // An endless line is one fault.
    let mut verifier = Verifier::new(Hasher::Plain, None);
    verifier.read("f", &*vec![b'x'; 5 << 20]).expect("read");
    assert_eq!(verifier.finish().findings.len(), 1);
}

proptest! {
    /// Any change of the bytes is found, except truncation at the end.
    #[test]
    fn no_change_goes_unseen(at in 0usize..3000, with in prop::collection::vec(any::<u8>(), 0..4), out in 0usize..300) {
        let mut whole = ten().join("\n").into_bytes();
        whole.push(b'\n');
        let at = at.min(whole.len());
        let mut text = whole.clone();
        text.splice(at..(at + out).min(whole.len()), with);
        prop_assume!(!whole.starts_with(&text));
        let mut verifier = Verifier::new(Hasher::Plain, None);
        verifier.read("f", &*text).expect("it can be judged");
        let outcome = verifier.finish();
        // A missing start, a truncated end and a missing newline are all reported.
        let last = outcome.range.map(|it| it.1.seq);
        let told = !outcome.findings.is_empty() || !outcome.notes.is_empty();
        prop_assert!(told || last != Some(10), "{text:?}");
    }

    #[test]
    fn any_bytes_are_judged(text in prop::collection::vec(any::<u8>(), 0..2000)) {
        let mut verifier = Verifier::new(Hasher::Plain, None);
        let _ = verifier.read("f", &*text);
        let outcome = verifier.finish();
        prop_assert!(outcome.range.is_none());
        prop_assert!(Line::parse(&text).is_none());
    }
}
