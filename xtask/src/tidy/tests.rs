//! Each rule is shown a snippet that breaks it, and one that keeps it.

use super::{TextFile, check};

fn file(path: &str, text: &str) -> TextFile {
    TextFile {
        path: path.to_owned(),
        text: text.to_owned(),
    }
}

/// What is found in one source file of `crates/ext4`.
fn found_in(code: &str) -> Vec<String> {
    let text = format!("//! A file.\n{code}\n");
    found(&[file("crates/ext4/src/a.rs", &text)])
}

fn found(files: &[TextFile]) -> Vec<String> {
    check(files)
        .into_iter()
        .map(|violation| format!("{}: {}", violation.line, violation.what))
        .collect()
}

#[test]
fn a_file_opens_with_its_purpose() {
    let without = file("crates/ext4/src/a.rs", "use std::fmt;\n");
    assert_eq!(found(&[without]), ["1: does not open with //!"]);
    assert!(found_in("use std::fmt;").is_empty());
}

#[test]
fn a_file_has_at_most_600_lines() {
    let line = "//! A line.\n";
    assert!(found(&[file("xtask/src/a.rs", &line.repeat(600))]).is_empty());
    assert_eq!(
        found(&[file("xtask/src/a.rs", &line.repeat(601))]),
        ["601: 601 lines; 600 are allowed"]
    );
}

#[test]
fn work_left_undone_is_found_in_text_and_code() {
    let word = concat!("TO", "DO");
    assert_eq!(
        found_in(&format!("// {word}: later")),
        [format!("2: {word} is left")]
    );
    let code = concat!("fn f() { to", "do!() }");
    assert_eq!(found_in(code), [concat!("2: to", "do! is left")]);
    let ignored = concat!("#[ig", "nore = \"slow\"]");
    assert_eq!(found_in(ignored), [concat!("2: #[ig", "nore is left")]);
    assert!(found_in("fn mastodon() {}").is_empty());
}

#[test]
fn paths_of_one_machine_are_found() {
    let path = ["", "tmp", "x"].join("/");
    let text = format!("See {path}.\n");
    assert_eq!(found(&[file("docs/A.md", &text)]).len(), 1);
    assert!(found(&[file("docs/A.md", "See a/tmp/x and /usr/lib.\n")]).is_empty());
}

#[test]
fn unsafe_code_lives_in_host_memory_alone() {
    let code = "fn f() { unsafe { g() } }";
    assert_eq!(found_in(code), ["2: unsafe outside host-memory"]);
    for path in [
        "crates/host-memory/src/a.rs",
        "crates/pagefence/tests/maps/pointers.rs",
    ] {
        let there = file(path, &format!("//! A.\n{code}\n"));
        assert!(found(&[there]).is_empty(), "{path}");
    }
    assert!(found_in("// unsafe\nconst A: &str = \"unsafe\";").is_empty());
}

#[test]
fn locks_and_threads_come_from_the_primitives() {
    for code in [
        "use std::sync::Mutex;",
        "use std::sync::{Arc, RwLock};",
        "use std::sync::atomic::AtomicU64;",
        "fn f() { std::thread::spawn(|| ()); }",
        "use std::thread;",
        "use parking_lot::Mutex;",
    ] {
        assert_eq!(found_in(code).len(), 1, "{code}");
    }
    for code in [
        "use std::sync::Arc;",
        "fn f() { std::thread::sleep(d); }",
        "// std::sync::Mutex",
        "use pagefence_lock_order::primitives::Mutex;",
    ] {
        assert!(found_in(code).is_empty(), "{code}");
    }
    let primitives = file(
        "crates/lock-order/src/primitives.rs",
        "//! A.\npub use parking_lot::Mutex;\n",
    );
    assert!(found(&[primitives]).is_empty());
    let example = file(
        "crates/pagefence/examples/a.rs",
        "//! A.\nuse std::thread;\n",
    );
    assert!(found(&[example]).is_empty());
}

#[test]
fn imports_follow_the_arrows() {
    let upwards = file(
        "crates/page-cache/src/a.rs",
        "//! A.\nuse pagefence_ext4::FileSystem;\n",
    );
    assert_eq!(found(&[upwards]), ["2: page-cache must not import ext4"]);
    let whole = file("crates/vfs/src/a.rs", "//! A.\nuse pagefence_ext4 as e;\n");
    assert_eq!(found(&[whole]), ["2: vfs must not import ext4"]);
    let library = file(
        "crates/ext4/src/a.rs",
        "//! A.\nfn f() { pagefence::f() }\n",
    );
    assert_eq!(found(&[library]), ["2: ext4 must not import pagefence"]);
    assert!(found_in("use pagefence_page_cache::Mapping;").is_empty());
    assert!(found_in("fn f() { let pagefence = 1; }").is_empty());
}

#[test]
fn manifests_follow_the_arrows() {
    let manifest =
        |folder: &str, text: &str| found(&[file(&format!("crates/{folder}/Cargo.toml"), text)]);
    assert_eq!(
        manifest(
            "fuse-front",
            "[dependencies]\npagefence-ext4.workspace = true\n"
        ),
        ["2: fuse-front must not depend on ext4"]
    );
    assert_eq!(
        manifest(
            "vfs",
            "[target.'cfg(x)'.dependencies]\npagefence-jbd2 = {}\n"
        ),
        ["2: vfs must not depend on jbd2"]
    );
    let mutants = "pagefence-page-cache = { features = [\"mutants\"] }\n";
    assert_eq!(
        manifest("ext4", &format!("[dependencies]\n{mutants}")),
        ["2: the feature \"mutants\" is for tests"]
    );
    let tests = manifest("ext4", &format!("[dev-dependencies]\n{mutants}"));
    assert!(tests.is_empty(), "{tests:?}");
    assert_eq!(
        manifest("newcomer", "[package]\n"),
        ["0: crates/newcomer is not in the table of arrows"]
    );
    assert!(
        manifest(
            "jbd2",
            "[dependencies]\npagefence-block-io.workspace = true\n"
        )
        .is_empty()
    );
    // A test may import what lies below its crate, however far, and nothing above it.
    assert!(
        manifest(
            "cli",
            "[dev-dependencies]\npagefence-jbd2.workspace = true\n"
        )
        .is_empty()
    );
    assert_eq!(
        manifest(
            "jbd2",
            "[dev-dependencies]\npagefence-ext4.workspace = true\n"
        ),
        ["2: jbd2 must not depend on ext4"]
    );
    // The file system's tests alone map its pages.
    let maps = "pagefence-page-mmap.workspace = true\n";
    let tests = manifest("ext4", &format!("[dev-dependencies]\n{maps}"));
    assert!(tests.is_empty(), "{tests:?}");
    assert_eq!(
        manifest("ext4", &format!("[dependencies]\n{maps}")),
        ["2: ext4 must not depend on page-mmap"]
    );
}

#[test]
fn documents_name_tests_that_exist() {
    let source = file(
        "crates/jbd2/src/recovery/tests.rs",
        "//! A.\n#[test]\nfn a_revoke_is_kept() {}\nfn no_test() {}\n",
    );
    let semantics = |text: &str| found(&[source.clone(), file("docs/SEMANTICS.md", text)]);
    for good in [
        "A clause. `test: crates/jbd2/src/recovery/tests.rs::a_revoke_is_kept`\n",
        "A clause. `test: jbd2::recovery::tests::a_revoke_is_kept`\n",
        "A clause. `tests: a_revoke_is_kept, pagefence_jbd2::a_revoke_is_kept`\n",
        "A clause. `test: xtask diff-walk`\n",
        "A clause without one.\n",
    ] {
        assert!(semantics(good).is_empty(), "{good}");
    }
    for bad in [
        "`test: crates/jbd2/src/recovery.rs::a_revoke_is_kept`",
        "`test: ext4::a_revoke_is_kept`",
        "`test: no_test`",
        "`tests: a_revoke_is_kept, gone`",
        "`test: xtask no-such-chore`",
    ] {
        assert_eq!(semantics(bad).len(), 1, "{bad}");
    }
}

#[test]
fn every_requirement_has_a_row_that_says_something() {
    let complete = super::requirements::complete();
    let requirements = |text: &str| found(&[file("docs/REQUIREMENTS.md", text)]);
    let with = |from: &str, to: &str| {
        let text = complete.replace(from, to);
        assert_ne!(text, complete, "{from}");
        requirements(&text)
    };
    assert!(requirements(&complete).is_empty());
    let head = "| number | what | where | test |\n|---|---|---|---|\n";
    assert!(requirements(&format!("{head}{complete}")).is_empty());
    let row = "| S3.18 | what | where | missing: all |\n";
    assert_eq!(with(row, ""), ["0: has no row for S3.18"]);
    assert_eq!(
        with(row, &row.replace("S3.18", "S3.19")),
        ["0: has no row for S3.18", "59: there is no number S3.19"]
    );
    let (line, of) = (59, "of S3.18");
    assert_eq!(
        with(row, &format!("{row}{row}")),
        [format!("{}: has a second row for S3.18", line + 1)]
    );
    let too_little = [format!("{line}: says too little {of}")];
    assert_eq!(
        with(row, "| S3.18 | what | where | some test |\n"),
        too_little
    );
    assert_eq!(
        with(row, "| S3.18 | what |  | missing: all |\n"),
        too_little
    );
    for good in ["by construction: there are none", "`test: xtask tidy`"] {
        assert!(
            with(row, &row.replace("missing: all", good)).is_empty(),
            "{good}"
        );
    }
}

#[test]
fn literals_and_lifetimes_are_told_apart() {
    let code = super::source::code_only(
        "let a = 'x'; fn f<'a>(b: &'a str) { g(r#\"unsafe \" \"#, b\"\\\"unsafe\", '\\''); }",
    );
    assert!(!code.contains("unsafe"), "{code}");
    assert!(code.contains("fn f<'a>(b: &'a str)"), "{code}");
}
