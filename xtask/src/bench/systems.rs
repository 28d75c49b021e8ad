//! The systems that are measured, behind one way to mount.

use std::path::Path;

use anyhow::Result;

use crate::command::find;
use crate::mounts::{Access, KernelMount, ServedMount, Server};

/// What the host reads of a plain file on the disk where the image lies: no mount is faster cold.
pub(crate) const HOST: &str = "host file";

/// One system.
#[derive(Debug)]
pub(crate) struct System {
    name: &'static str,
    /// `None` is the kernel.
    server: Option<Server>,
    options: String,
}

/// A mount by any of them.
pub(crate) enum Mount {
    Kernel(KernelMount),
    Served(ServedMount),
}

impl Mount {
    /// Takes it down.
    pub(crate) fn unmount(self) -> Result<()> {
        match self {
            Self::Kernel(mount) => mount.unmount(),
            Self::Served(mount) => mount.unmount(),
        }
    }
}

impl System {
    /// Its column.
    pub(crate) fn name(&self) -> &'static str {
        self.name
    }

    /// Mounts read-only; returns once the mount answers.
    pub(crate) fn mount(&self, image: &Path, directory: &Path) -> Result<Mount> {
        self.mount_as("ro", Access::ReadOnly, image, directory)
    }

    /// Mounts for writing; returns once the mount answers.
    pub(crate) fn mount_writable(&self, image: &Path, directory: &Path) -> Result<Mount> {
        self.mount_as("rw", Access::ReadWrite, image, directory)
    }

    fn mount_as(
        &self,
        option: &str,
        access: Access,
        image: &Path,
        directory: &Path,
    ) -> Result<Mount> {
        let options = if self.options.is_empty() {
            option.to_owned()
        } else {
            format!("{option},{}", self.options)
        };
        Ok(match &self.server {
            None => Mount::Kernel(KernelMount::new(image, directory, access, &options)?),
            Some(server) => Mount::Served(ServedMount::new(server, image, directory, &options)?),
        })
    }
}

/// All that are there.
pub(crate) struct Systems(Vec<System>);

impl Systems {
    /// pagefence, fuse2fs if it is installed, and the kernel.
    pub(crate) fn new(pagefence: Server, options: &str) -> Self {
        let mut systems = vec![System {
            name: "pagefence",
            server: Some(pagefence),
            options: options.to_owned(),
        }];
        if find("fuse2fs").is_some() {
            systems.push(System {
                name: "fuse2fs",
                server: Some(Server::Fuse2fs),
                options: String::new(),
            });
        } else {
            println!("fuse2fs is not measured: it is missing (apt-get install fuse2fs)");
        }
        systems.push(System {
            name: "kernel",
            server: None,
            options: String::new(),
        });
        Self(systems)
    }

    /// In the order of one round: each starts with another one, so that none always follows the
    /// same other.
    pub(crate) fn each(&self, round: usize) -> impl Iterator<Item = &System> {
        let start = round % self.0.len();
        self.0[start..].iter().chain(&self.0[..start])
    }

    /// The columns.
    pub(crate) fn names(&self) -> Vec<&'static str> {
        self.0.iter().map(System::name).chain([HOST]).collect()
    }
}
