//! Test programs, built for a sanitizer.

use std::path::PathBuf;
use std::process::Stdio;

use anyhow::{Context as _, Result, ensure};

use super::Sanitizer;
use crate::command::command;
use crate::mounts::workspace_root;

/// A program of tests.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Program {
    /// The crate's directory in `crates`.
    pub(crate) package: String,
    /// The package, and in it the library, the binary or the file of `tests`.
    pub(crate) name: String,
    pub(crate) path: PathBuf,
    /// Where cargo would run it.
    pub(crate) directory: PathBuf,
}

/// Builds the tests of `packages`, with everything that they use (examples are programs of tests), and
/// gives them in that order.
pub(crate) fn build(sanitizer: Sanitizer, packages: &[&str]) -> Result<Vec<Program>> {
    let kind = sanitizer.name();
    let root = workspace_root()?;
    let cargo = std::env::var("CARGO").unwrap_or_else(|_| "cargo".to_owned());
    let mut build = command(
        cargo,
        [
            "test",
            "--no-run",
            "--message-format",
            "json-render-diagnostics",
            // With a target named, what runs while building is not built for the sanitizer.
            "--target",
            &host()?,
        ],
    );
    for package in packages {
        let name = match *package {
            "pagefence" => "pagefence".to_owned(),
            _ => format!("pagefence-{package}"),
        };
        build.args(["--package", &name]);
    }
    let output = build
        .arg("--target-dir")
        .arg(root.join(format!("target/sanitize-{kind}")))
        .env("RUSTC_BOOTSTRAP", "1")
        .env_remove("CARGO_ENCODED_RUSTFLAGS")
        .env(
            "RUSTFLAGS",
            format!(
                "-Zsanitizer={kind} -Cunsafe-allow-abi-mismatch=sanitizer \
                 --cfg=sanitized --cfg=sanitized=\"{kind}\" --cfg=rustix_use_libc"
            ),
        )
        .current_dir(&root)
        .stderr(Stdio::inherit())
        .output()
        .context("cannot run cargo")?;
    ensure!(
        output.status.success(),
        "the tests can't be built for the sanitizer"
    );
    let mut programs: Vec<_> = String::from_utf8_lossy(&output.stdout)
        .lines()
        .filter_map(parse)
        .collect();
    programs.sort_by_key(|program| {
        let place = packages.iter().position(|&name| name == program.package);
        (place, program.name.clone())
    });
    Ok(programs)
}

/// What the compiler calls the machine that it runs on.
fn host() -> Result<String> {
    let said = crate::command::run("rustc", ["-vV"])?;
    let host = said.lines().find_map(|line| line.strip_prefix("host: "));
    Ok(host.context("rustc does not tell its host")?.to_owned())
}

/// The test program that a message of cargo tells of, if it does.
fn parse(message: &str) -> Option<Program> {
    let profile = message.split_once("\"profile\":{")?.1.split_once('}')?.0;
    if !profile.contains("\"test\":true") {
        return None;
    }
    let directory = PathBuf::from(text(message, "manifest_path")?)
        .parent()?
        .to_owned();
    let package = directory.file_name()?.to_str()?.to_owned();
    let target = message.split_once("\"target\":{")?.1;
    let kind = target.split_once("\"kind\":[\"")?.1.split_once('"')?.0;
    Some(Program {
        name: format!("{package}, {kind} {}", text(target, "name")?),
        package,
        path: PathBuf::from(text(message, "executable")?),
        directory,
    })
}

/// The text under the first `key` of `message`; no name of ours has a character that is escaped.
fn text<'a>(message: &'a str, key: &str) -> Option<&'a str> {
    let (_, behind) = message.split_once(&format!("\"{key}\":\""))?;
    Some(behind.split_once('"')?.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn test_programs_are_told_from_other_messages() {
        let message = |test: bool| {
            format!(
                "{{\"reason\":\"compiler-artifact\",\"package_id\":\"path+file:///w/crates/jbd2#a@0.1.0\",\
                 \"manifest_path\":\"/w/crates/jbd2/Cargo.toml\",\"target\":{{\"kind\":[\"test\"],\
                 \"crate_types\":[\"bin\"],\"name\":\"small_log\",\"test\":true}},\
                 \"profile\":{{\"opt_level\":\"1\",\"test\":{test}}},\"features\":[],\
                 \"executable\":\"/w/target/small_log-1\",\"fresh\":true}}"
            )
        };
        let program = Program {
            package: "jbd2".to_owned(),
            name: "jbd2, test small_log".to_owned(),
            path: "/w/target/small_log-1".into(),
            directory: "/w/crates/jbd2".into(),
        };
        assert_eq!(parse(&message(true)), Some(program));
        assert_eq!(parse(&message(false)), None);
        assert_eq!(
            parse("{\"reason\":\"build-finished\",\"success\":true}"),
            None
        );
        assert_eq!(parse("Compiling"), None);
    }
}
