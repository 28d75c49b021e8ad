//! The processes that write while the server is killed: how they are started, how they may end, and what they
//! promised.

use std::fs::File;
use std::os::unix::process::ExitStatusExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};

use super::{Arguments, Found, mapper, writer};
use crate::command::command;
use crate::random::Random;
use crate::scratch::Scratch;

/// Arguments of a process that writes.
#[derive(clap::Args)]
pub(crate) struct WriterArguments {
    directory: PathBuf,
    log: PathBuf,
    seed: u64,
    /// It stores to a map.
    #[arg(long)]
    maps: bool,
}

/// A process may take so long to notice that its server is gone.
const PATIENCE: Duration = Duration::from_secs(60);
const SIGBUS: i32 = 7;

/// Works until the file system goes away: one that writes.
pub(crate) fn run(arguments: &WriterArguments) -> Result<bool> {
    let WriterArguments {
        directory,
        log,
        seed,
        maps,
    } = arguments;
    if *maps {
        return mapper::store_until_it_ends(directory, log, *seed).map(|()| true);
    }
    // That the server is killed is why we are here; what was promised before counts.
    let _ = writer::write_until_it_fails(directory, log, *seed);
    Ok(true)
}

/// One of them.
pub(super) struct Process {
    name: String,
    log: PathBuf,
    seed: u64,
    maps: bool,
}

impl Process {
    /// Those of a life of the server, each with a directory, which is durable before anything in it is promised.
    pub(super) fn all(
        arguments: &Arguments,
        life: u64,
        random: &mut Random,
        scratch: &Scratch,
        directory: &Path,
    ) -> Result<Vec<Self>> {
        let mut processes = Vec::new();
        for number in 0..=arguments.writers {
            let maps = number == arguments.writers;
            if maps && arguments.starve.is_some() {
                continue;
            }
            let process = Self {
                name: format!("writer-{life}-{number}"),
                log: scratch.join(&format!("log-{life}-{number}")),
                seed: random.next(),
                maps,
            };
            std::fs::create_dir(directory.join(&process.name))?;
            File::create(&process.log)?;
            processes.push(process);
        }
        rustix::fs::syncfs(File::open(directory)?)?;
        Ok(processes)
    }

    pub(super) fn start(&self, directory: &Path) -> Result<Child> {
        command(std::env::current_exe()?, ["kill-writer"])
            .arg(directory.join(&self.name))
            .arg(&self.log)
            .arg(self.seed.to_string())
            .args(self.maps.then_some("--maps"))
            .stdout(Stdio::null())
            .spawn()
            .context("a writer can't be started")
    }

    /// Waits for its end, which must come soon now that its server is gone, and as it should.
    pub(super) fn wait(&self, mut child: Child, found: &mut Found) -> Result<()> {
        let begun = Instant::now();
        let status = loop {
            if let Some(status) = child.try_wait()? {
                break status;
            }
            if begun.elapsed() > PATIENCE {
                child.kill()?;
                child.wait()?;
                bail!("{} hangs after the end of its server", self.name);
            }
            std::thread::sleep(Duration::from_millis(2));
        };
        match status.signal() {
            Some(SIGBUS) if self.maps => found.by_signal += 1,
            None if self.maps && status.success() => found.by_error += 1,
            _ => ensure!(status.success(), "{} ended with {status}", self.name),
        }
        Ok(())
    }

    /// Holds its directory against its log.
    pub(super) fn verify(
        &self,
        directory: &Path,
        lost: Option<&[Vec<u8>]>,
        found: &mut Found,
    ) -> Result<()> {
        let directory = directory.join(&self.name);
        match self.maps {
            true => mapper::verify(&directory, &self.log, self.seed, found),
            false => writer::verify(&directory, &self.log, self.seed, lost, found),
        }
        .with_context(|| self.name.clone())
    }
}
