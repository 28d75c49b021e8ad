//! The chores of this workspace, one subcommand each; `cargo xtask help` lists them.

mod bench;
mod cgroup;
mod command;
mod copy_tree;
mod diff_walk;
mod guard;
mod images;
mod kill;
mod memory;
mod mounts;
mod mutants;
mod prove;
mod random;
mod ranges;
mod sanitize;
mod scratch;
mod soak;
mod sparse;
mod storm;
mod tidy;
mod workloads;

use std::process::ExitCode;

use clap::Parser;

/// The chores of the pagefence workspace.
#[derive(Parser)]
#[command(name = "cargo xtask", max_term_width = 100)]
enum Chore {
    /// Check the source: layout, arrows between crates, documents that name tests.
    Tidy(tidy::Arguments),
    /// Make the matrix of test images with mke2fs and the kernel (root, loop devices).
    Images(images::Arguments),
    /// Compare pagefence's mount of each image with the kernel's, name by name and byte by byte
    /// (root, loop devices, /dev/fuse).
    DiffWalk(diff_walk::Arguments),
    /// Change ranges of files at random on pagefence's mount and on the kernel's; nothing may differ
    /// (root, loop devices, /dev/fuse).
    Ranges(ranges::Arguments),
    /// Let threads loose on all that the library can do to files, under oracles.
    Storm(storm::Arguments),
    /// Map files of one mount in two processes while others change them; nothing stale may be seen
    /// (/dev/fuse).
    Soak(soak::Arguments),
    /// A process that `soak` starts.
    #[command(hide = true)]
    SoakMapper(soak::MapperArguments),
    /// Copy a tree into fresh images, by pagefence and by the kernel, and read each through the
    /// other (root, loop devices, /dev/fuse).
    CopyTree(copy_tree::Arguments),
    /// A process that `bench` starts.
    #[command(hide = true)]
    BenchWorker(bench::writes::WorkerArguments),
    /// A process that `bench` starts: a mount of a server that does nothing.
    #[command(hide = true)]
    NullServer(bench::null_server::Arguments),
    /// Measure pagefence, fuse2fs and the kernel in turn (root, loop devices, /dev/fuse, fio).
    Bench(bench::Arguments),
    /// Kill the server under fsynced writes, again and again; none of them may be lost (root,
    /// /dev/fuse).
    Kill(kill::Arguments),
    /// A process that `kill` starts.
    #[command(hide = true)]
    KillWriter(kill::WriterArguments),
    /// Let git, tar, SQLite, Python, fsx and pjdfstest loose on mounts (root, /dev/fuse).
    Workloads(workloads::Arguments),
    /// Leave each protection out in turn, and see a test notice (docs/MUTANTS.md).
    Mutants(mutants::Arguments),
    /// Try what is promised: power cuts, failing devices, hostile images and more; a table of what was
    /// tried.
    Prove(prove::Arguments),
    /// Run the tests under ThreadSanitizer or AddressSanitizer; a table of what was reported.
    Sanitize(sanitize::Arguments),
    /// Show that the server's memory stays within its budget (root, loop devices, /dev/fuse).
    ProveMemory(memory::Arguments),
}

impl Chore {
    /// Whether it maps files of mounts.
    fn maps_files(&self) -> bool {
        matches!(self, Self::Bench(_) | Self::Ranges(_))
    }
}

fn main() -> ExitCode {
    let chore = Chore::parse();
    if chore.maps_files() {
        match guard::watch() {
            Ok(None) => {}
            Ok(Some(code)) => return code,
            Err(error) => return failed(&error),
        }
    }
    let outcome = match chore {
        Chore::Tidy(arguments) => tidy::run(&arguments),
        Chore::Images(arguments) => images::run(&arguments),
        Chore::DiffWalk(arguments) => diff_walk::run(&arguments),
        Chore::Bench(arguments) => bench::run(&arguments),
        Chore::BenchWorker(arguments) => bench::writes::worker(&arguments),
        Chore::NullServer(arguments) => bench::null_server::serve(&arguments),
        Chore::CopyTree(arguments) => copy_tree::run(&arguments),
        Chore::Ranges(arguments) => ranges::run(&arguments),
        Chore::Storm(arguments) => storm::run(&arguments),
        Chore::Soak(arguments) => soak::run(&arguments),
        Chore::SoakMapper(arguments) => soak::mapper(&arguments),
        Chore::Kill(arguments) => kill::run(&arguments),
        Chore::KillWriter(arguments) => kill::writer(&arguments),
        Chore::Workloads(arguments) => workloads::run(&arguments),
        Chore::Mutants(arguments) => mutants::run(&arguments),
        Chore::Prove(arguments) => prove::run(&arguments),
        Chore::Sanitize(arguments) => sanitize::run(&arguments),
        Chore::ProveMemory(arguments) => memory::run(&arguments),
    };
    match outcome {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => failed(&error),
    }
}

fn failed(error: &anyhow::Error) -> ExitCode {
    eprintln!("error: {error:#}");
    ExitCode::from(2)
}
