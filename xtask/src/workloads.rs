//! `cargo xtask workloads`: programs that people use, on a mount by the real binary. After each the
//! server is killed, the image recovered in three ways that must agree, and shown to e2fsck.

mod fsx;

use std::fs::Permissions;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::{Context, Result, bail, ensure};

use crate::bench::prepare;
use crate::command::{Needs, command, find, require, run as run_program};
use crate::diff_walk::report::Report;
use crate::diff_walk::{Scope, check, recover_three_ways, tree};
use crate::mounts::{ServedMount, Server, pagefence_binary, workspace_root};
use crate::random::Random;
use crate::scratch::Scratch;

/// Arguments of `workloads`.
#[derive(clap::Args)]
pub(crate) struct Arguments {
    /// The binary to try; built in the release profile unless given.
    #[arg(long)]
    binary: Option<PathBuf>,
    /// Types of file system, separated by commas; tmpfs is that of `mount --tmpfs`.
    #[arg(long, value_delimiter = ',', default_value = "ext2,ext3,ext4,tmpfs")]
    types: Vec<String>,
    /// Block sizes of images, separated by commas.
    #[arg(long, value_delimiter = ',', default_value = "1024,4096")]
    block_sizes: Vec<u32>,
    /// Only these, separated by commas: git, tar, sqlite, python, dpkg, fsx,
    /// pjdfstest.
    #[arg(long, value_delimiter = ',')]
    only: Vec<String>,
    /// Where `bin/fsx` and `bin/pjdfstest` are; installed by cargo into a scratch directory unless
    /// given.
    #[arg(long)]
    tools: Option<PathBuf>,
    /// Operations of fsx.
    #[arg(long, default_value_t = 4000)]
    fsx_operations: u32,
    /// Runs fsx for so many minutes on each type, with every operation that it has and one seed
    /// after the other, instead of once.
    #[arg(long)]
    minutes: Option<f64>,
    /// Decides what fsx does and what tar packs.
    #[arg(long, default_value_t = 1)]
    seed: u64,
}

/// The type that has no image.
const TMPFS: &str = "tmpfs";
/// Size of an image, or of a file system in memory, in MiB.
const IMAGE_MIB: u64 = 512;
/// Small files of the tree that is committed and packed.
const FILES: u64 = 600;

/// How a program fared.
enum Outcome {
    /// It did its work; how much, in words.
    Done(String),
    /// It could not be tried here, for a reason that is not ours.
    Skipped(String),
}

/// What a program may use.
struct Place<'a> {
    /// An empty directory on the mount.
    directory: &'a Path,
    /// An empty directory elsewhere.
    elsewhere: &'a Path,
    /// A tree of files of every kind, elsewhere.
    source: &'a Path,
    /// Where fsx and pjdfstest are.
    tools: &'a Path,
    arguments: &'a Arguments,
}

type Workload = fn(&Place<'_>) -> Result<Outcome>;

const WORKLOADS: [(&str, Workload); 7] = [
    ("git", git),
    ("tar", tar),
    ("sqlite", sqlite),
    ("python", python),
    ("dpkg", dpkg),
    ("fsx", fsx::run),
    ("pjdfstest", pjdfstest),
];

/// Runs the chore; `true` if every program was content and every image sound.
pub(crate) fn run(arguments: &Arguments) -> Result<bool> {
    require(&Needs {
        programs: &["mke2fs", "e2fsck", "losetup", "mount", "umount", "cp"],
        fuse: true,
    })?;
    for name in &arguments.only {
        let is_known = WORKLOADS.iter().any(|(known, _)| known == name);
        ensure!(is_known, "there is no workload {name}");
    }
    let server = Server::Pagefence(pagefence_binary(arguments.binary.as_deref())?);
    let scratch = Scratch::new()?;
    // pjdfstest becomes other users, who must get there.
    std::fs::set_permissions(scratch.join("."), Permissions::from_mode(0o755))?;
    let source = make_source(&scratch, arguments.seed)?;
    let tools = tools(arguments, &scratch);
    let mount_point = scratch.directory("mnt")?;
    let (mut done, mut skipped, mut failed) = (0, 0, 0);
    for kind in &arguments.types {
        let is_image = kind != TMPFS;
        let block_sizes = if is_image {
            &arguments.block_sizes[..]
        } else {
            &[4096]
        };
        for block_size in block_sizes {
            let image = scratch.join(&format!("{kind}-{block_size}.img"));
            if is_image {
                make_image(&image, kind, *block_size)?;
            }
            for (name, workload) in WORKLOADS {
                if !arguments.only.is_empty() && !arguments.only.iter().any(|only| only == name) {
                    continue;
                }
                let elsewhere = scratch.directory(&format!("{kind}-{block_size}-{name}"))?;
                let start = Instant::now();
                let work = |directory: &Path| {
                    workload(&Place {
                        directory,
                        elsewhere: &elsewhere,
                        source: &source,
                        tools: &tools,
                        arguments,
                    })
                };
                let outcome = if is_image {
                    let how = (name, kind != "ext2");
                    on_a_mount(&server, &image, &mount_point, how, work)
                } else {
                    on_a_tmpfs(&server, &mount_point, name, work)
                };
                let seconds = start.elapsed().as_secs_f64();
                let what = format!("{kind} {block_size} {name}");
                match outcome {
                    Ok(Outcome::Done(how)) => {
                        done += 1;
                        println!("ok       {what}: {how} ({seconds:.1} s)");
                    }
                    Ok(Outcome::Skipped(why)) => {
                        skipped += 1;
                        println!("skipped  {what}: {why}");
                    }
                    Err(error) => {
                        failed += 1;
                        println!("FAILED   {what}: {error:#}");
                        // What comes next does not suffer from it.
                        if is_image {
                            make_image(&image, kind, *block_size)?;
                        }
                    }
                }
                std::fs::remove_dir_all(&elsewhere)?;
            }
            if is_image {
                std::fs::remove_file(&image)?;
            }
        }
    }
    println!("{done} workloads done, {skipped} skipped, {failed} failed");
    Ok(failed == 0)
}

fn make_image(image: &Path, kind: &str, block_size: u32) -> Result<()> {
    std::fs::File::create(image)?.set_len(IMAGE_MIB << 20)?;
    let block_size = block_size.to_string();
    let arguments = ["-q", "-F", "-t", kind, "-b", &block_size, "-i", "8192"];
    let all = arguments.into_iter().map(AsRef::as_ref);
    run_program("mke2fs", all.chain([image.as_os_str()])).map(drop)
}

/// Mounts the image and lets the program loose in a directory of its own. If there is a journal the
/// server is killed then, and pagefence, the kernel and e2fsck must make the same of what is left.
/// In the end the image is unmounted properly and shown to e2fsck.
fn on_a_mount(
    server: &Server,
    image: &Path,
    mount_point: &Path,
    (name, has_journal): (&str, bool),
    workload: impl FnOnce(&Path) -> Result<Outcome>,
) -> Result<Outcome> {
    let mount = ServedMount::new(server, image, mount_point, "rw,allow_other")?;
    let directory = mount_point.join(name);
    let outcome = std::fs::create_dir(&directory)
        .context("mkdir")
        .and_then(|()| workload(&directory));
    let outcome = match outcome {
        Ok(outcome) => outcome,
        Err(error) => {
            mount.unmount()?;
            return Err(error);
        }
    };
    if has_journal {
        mount.kill()?;
        let scratch = Scratch::new()?;
        let mut report = Report::default();
        recover_three_ways(server, image, &scratch, &mut report)?;
        ensure!(report.mismatches() == 0, "the recoveries differ");
        ServedMount::new(server, image, mount_point, "rw")?.unmount()?;
    } else {
        mount.unmount()?;
    }
    match check::complaints(image)? {
        None => Ok(outcome),
        Some(complaints) => bail!("e2fsck: {complaints}"),
    }
}

/// Mounts a file system in memory and lets the program loose in a directory of its own.
fn on_a_tmpfs(
    server: &Server,
    mount_point: &Path,
    name: &str,
    workload: impl FnOnce(&Path) -> Result<Outcome>,
) -> Result<Outcome> {
    let mount = ServedMount::tmpfs(server, IMAGE_MIB, mount_point, "rw,allow_other")?;
    let directory = mount_point.join(name);
    let outcome = std::fs::create_dir(&directory)
        .context("mkdir")
        .and_then(|()| workload(&directory));
    mount.unmount()?;
    outcome
}

/// A tree of many small files, some large ones, links of both sorts, modes and attributes.
fn make_source(scratch: &Scratch, seed: u64) -> Result<PathBuf> {
    let source = scratch.directory("source")?;
    prepare::fill_files(&source, FILES)?;
    let mut random = Random::new(seed);
    for number in 0..20 {
        let length = usize::try_from(random.below(2_000_000))?;
        let path = source.join(format!("large-{number}"));
        std::fs::write(&path, random.bytes(length))?;
        std::fs::hard_link(&path, source.join(format!("also-{number}")))?;
    }
    for (name, target) in [("short", "large-0"), ("long", &*"./".repeat(60))] {
        std::os::unix::fs::symlink(target, source.join(name))?;
    }
    Ok(source)
}

/// Runs a program in a directory; an error quotes what it printed.
fn run_in(directory: &Path, program: &str, arguments: &[&str]) -> Result<String> {
    let home = directory.parent().unwrap_or(directory);
    let output = command(program, arguments)
        .current_dir(directory)
        .env("HOME", home)
        .env("GIT_CONFIG_NOSYSTEM", "1")
        .output()
        .with_context(|| format!("cannot run {program}"))?;
    let printed = String::from_utf8_lossy(&output.stdout).into_owned();
    if output.status.success() {
        return Ok(printed);
    }
    let errors = String::from_utf8_lossy(&output.stderr);
    let said = format!("{printed}\n{errors}");
    let start = said.len().saturating_sub(2000);
    let tail = said.get(start..).unwrap_or(&said);
    bail!(
        "{program} {arguments:?}, {}: {}",
        output.status,
        tail.trim()
    )
}

fn missing(program: &str) -> Option<Outcome> {
    find(program)
        .is_none()
        .then(|| Outcome::Skipped(format!("there is no {program}")))
}

/// A path as an argument.
fn text(path: &Path) -> Result<&str> {
    path.to_str().context("a path of text")
}

fn git(place: &Place<'_>) -> Result<Outcome> {
    if let Some(skipped) = missing("git") {
        return Ok(skipped);
    }
    let repository = place.directory.join("repository");
    std::fs::create_dir(&repository)?;
    let everything = place.source.join(".");
    run_program(
        "cp",
        [
            "-a".as_ref(),
            everything.as_os_str(),
            repository.as_os_str(),
        ],
    )?;
    let git = |directory: &Path, arguments: &[&str]| -> Result<String> {
        let who = [
            "-c",
            "user.name=xtask",
            "-c",
            "user.email=xtask@example.org",
        ];
        run_in(directory, "git", &[&who[..], arguments].concat())
    };
    git(&repository, &["init", "-q"])?;
    git(&repository, &["add", "."])?;
    git(&repository, &["commit", "-q", "-m", "all"])?;
    let from = text(&repository)?;
    git(
        place.directory,
        &["clone", "-q", "--no-hardlinks", from, "clone"],
    )?;
    let clone = place.directory.join("clone");
    for directory in [&repository, &clone] {
        let status = git(directory, &["status", "--porcelain"])?;
        ensure!(status.is_empty(), "git status: {status}");
        git(directory, &["fsck", "--full", "--strict"])?;
    }
    git(&clone, &["gc", "-q"])?;
    git(&clone, &["fsck", "--full"])?;
    let files = git(&clone, &["ls-files"])?.lines().count();
    Ok(Outcome::Done(format!("{files} files committed and cloned")))
}

fn tar(place: &Place<'_>) -> Result<Outcome> {
    if let Some(skipped) = missing("tar") {
        return Ok(skipped);
    }
    let pack = |from: &Path, archive: &Path| {
        let flags = ["--xattrs", "--acls", "-cf", text(archive)?, "."];
        run_in(from, "tar", &flags)
    };
    let unpack = |archive: &Path, to: &Path| {
        run_in(to, "tar", &["--xattrs", "--acls", "-xpf", text(archive)?])
    };
    let (there, back) = (
        place.elsewhere.join("in.tar"),
        place.elsewhere.join("out.tar"),
    );
    let (inside, outside) = (place.directory.join("tree"), place.elsewhere.join("tree"));
    std::fs::create_dir(&inside)?;
    std::fs::create_dir(&outside)?;
    pack(place.source, &there)?;
    unpack(&there, &inside)?;
    compare_trees(place.source, &inside)?;
    pack(&inside, &back)?;
    unpack(&back, &outside)?;
    compare_trees(place.source, &outside)?;
    std::fs::remove_dir_all(&inside)?;
    Ok(Outcome::Done(format!("{FILES} files in and out")))
}

fn compare_trees(expected: &Path, found: &Path) -> Result<()> {
    const COPY: Scope = Scope {
        free_counts: false,
        recovery_began: None,
        is_copy: true,
    };
    let mut report = Report::default();
    report.start_image(found);
    tree::compare(expected, found, COPY, &mut report)?;
    ensure!(report.mismatches() == 0, "{} differs", found.display());
    Ok(())
}

/// Rows in both journal modes, through two connections, some rolled back.
const SQLITE: &str = r#"
import sqlite3, sys
total = 0
for mode in ("delete", "wal"):
    path = sys.argv[1] + "/" + mode + ".db"
    one = sqlite3.connect(path, isolation_level=None)
    found = one.execute("pragma journal_mode=" + mode).fetchone()[0]
    if found != mode:
        sys.exit("journal mode " + found + " instead of " + mode)
    one.execute("pragma synchronous=full")
    one.execute("create table t(k integer primary key, v blob)")
    other = sqlite3.connect(path)
    rows = 0
    for step in range(40):
        one.execute("begin")
        for key in range(50):
            value = bytes([step]) * (key * 37)
            one.execute("insert into t(v) values (?)", (value,))
        if step % 5 == 4:
            one.execute("rollback")
        else:
            one.execute("commit")
            rows += 50
        seen = other.execute("select count(*) from t").fetchone()[0]
        if seen != rows:
            sys.exit("%d rows seen of %d" % (seen, rows))
    one.execute("delete from t where k % 3 = 0")
    one.execute("vacuum")
    for connection in (one, other):
        answer = connection.execute("pragma integrity_check").fetchone()[0]
        if answer != "ok":
            sys.exit(answer)
        connection.close()
    total += rows
print(total)
"#;

fn python3(directory: &Path, script: &str) -> Result<String> {
    run_in(directory, "python3", &["-c", script, text(directory)?])
}

fn sqlite(place: &Place<'_>) -> Result<Outcome> {
    if let Some(skipped) = missing("python3") {
        return Ok(skipped);
    }
    if run_in(place.elsewhere, "python3", &["-c", "import sqlite3"]).is_err() {
        return Ok(Outcome::Skipped("python3 has no sqlite3".to_owned()));
    }
    let rows = python3(place.directory, SQLITE)?;
    Ok(Outcome::Done(format!("{} rows in both modes", rows.trim())))
}

/// The standard library's modules copied, compiled, and one of them imported from there.
const PYTHON: &str = r#"
import compileall, os, shutil, subprocess, sys, email, json
target = sys.argv[1] + "/lib"
for module in (email, json):
    source = os.path.dirname(module.__file__)
    ignore = shutil.ignore_patterns("__pycache__")
    shutil.copytree(source, target + "/copied_" + module.__name__, ignore=ignore)
if not compileall.compile_dir(target, quiet=1):
    sys.exit("not everything compiles")
made = [name for _, _, names in os.walk(target) for name in names if name.endswith(".pyc")]
if not made:
    sys.exit("nothing was compiled")
code = "import copied_json; print(copied_json.loads('[1]')[0])"
environment = dict(os.environ, PYTHONPATH=target, PYTHONDONTWRITEBYTECODE="1")
if subprocess.check_output([sys.executable, "-c", code], env=environment) != b"1\n":
    sys.exit("what was compiled does not run")
print(len(made))
"#;

fn python(place: &Place<'_>) -> Result<Outcome> {
    if let Some(skipped) = missing("python3") {
        return Ok(skipped);
    }
    let made = python3(place.directory, PYTHON)?;
    Ok(Outcome::Done(format!("{} modules compiled", made.trim())))
}

/// A package that is made of the tree, installed, compared and purged.
fn dpkg(place: &Place<'_>) -> Result<Outcome> {
    if let Some(skipped) = missing("dpkg").or_else(|| missing("dpkg-deb")) {
        return Ok(skipped);
    }
    let package = place.elsewhere.join("package");
    let content = package.join("usr/share");
    std::fs::create_dir_all(&content)?;
    std::fs::create_dir(package.join("DEBIAN"))?;
    std::fs::write(
        package.join("DEBIAN/control"),
        "Package: tree\nVersion: 1\nArchitecture: all\nMaintainer: xtask <xtask@example.org>\n\
         Description: a tree of files\n",
    )?;
    let target = content.join("tree");
    run_program(
        "cp",
        ["-a".as_ref(), place.source.as_os_str(), target.as_os_str()],
    )?;
    let archive = place.elsewhere.join("tree.deb");
    let build = ["--build", text(&package)?, text(&archive)?];
    run_in(place.elsewhere, "dpkg-deb", &build)?;
    let root = place.directory.join("root");
    let database = root.join("var/lib/dpkg");
    for directory in ["info", "updates", "triggers"] {
        std::fs::create_dir_all(database.join(directory))?;
    }
    for file in ["status", "available"] {
        std::fs::write(database.join(file), "")?;
    }
    let dpkg = |arguments: &[&str]| -> Result<String> {
        let root = format!("--root={}", text(&root)?);
        let all = [&[root.as_str(), "--force-bad-path"][..], arguments].concat();
        run_in(place.elsewhere, "dpkg", &all)
    };
    dpkg(&["--install", text(&archive)?])?;
    let installed = root.join("usr/share/tree");
    // A package keeps no more than the seconds of times.
    let trees = [text(place.source)?, text(&installed)?];
    run_in(
        place.elsewhere,
        "diff",
        &[&["-r", "--no-dereference"][..], &trees].concat(),
    )?;
    let files = dpkg(&["--listfiles", "tree"])?.lines().count();
    dpkg(&["--purge", "tree"])?;
    ensure!(!installed.exists(), "the purged package is still there");
    Ok(Outcome::Done(format!("{files} files installed and purged")))
}

/// The directory whose `bin` has fsx and pjdfstest: given, or filled by `cargo install`. What
/// can't be installed is not there, and its workload says so.
fn tools(arguments: &Arguments, scratch: &Scratch) -> PathBuf {
    if let Some(tools) = &arguments.tools {
        return tools.clone();
    }
    let tools = scratch.join("tools");
    for name in ["fsx", "pjdfstest"] {
        let is_wanted = arguments.only.is_empty() || arguments.only.iter().any(|only| only == name);
        if !is_wanted {
            continue;
        }
        let cargo = std::env::var("CARGO").unwrap_or_else(|_| "cargo".to_owned());
        let installed = command(&cargo, ["install", "--quiet", "--locked", name, "--root"])
            .arg(&tools)
            .output();
        match installed {
            Ok(output) if output.status.success() => {}
            Ok(output) => {
                let errors = String::from_utf8_lossy(&output.stderr);
                let last = errors.lines().last().unwrap_or_default();
                println!("cargo install {name} failed: {last}");
            }
            Err(error) => println!("cargo install {name} failed: {error}"),
        }
    }
    tools
}

fn tool(place: &Place<'_>, name: &str) -> Result<String, Outcome> {
    let path = place.tools.join("bin").join(name);
    match path.to_str() {
        Some(text) if path.is_file() => Ok(text.to_owned()),
        _ => Err(Outcome::Skipped(format!("there is no {}", path.display()))),
    }
}

fn pjdfstest(place: &Place<'_>) -> Result<Outcome> {
    let program = match tool(place, "pjdfstest") {
        Ok(program) => program,
        Err(skipped) => return Ok(skipped),
    };
    let configuration = workspace_root()?.join("xtask/pjdfstest.toml");
    let flags = ["-c", text(&configuration)?, "-p", text(place.directory)?];
    let printed = run_in(place.directory, &program, &flags)?;
    // It makes paths longer than any that can be named, and removes them: that they are gone is made
    // durable, or who compares what was recovered can't name them either.
    run_program("sync", ["-f", text(place.directory)?])?;
    let summary = printed.lines().rev().find(|line| !line.trim().is_empty());
    Ok(Outcome::Done(
        summary.unwrap_or("no summary").trim().to_owned(),
    ))
}
