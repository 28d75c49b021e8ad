//! Making one image: mke2fs, adjustments, the kernel's filling, a final e2fsck.

use std::fs::File;
use std::path::Path;

use anyhow::{Context, Result, bail, ensure};

use super::matrix::{Adjustment, Variant};
use super::{Outcome, fill, image_path};
use crate::command::{command, output};
use crate::mounts::{Access, KernelMount};
use crate::scratch::Scratch;

const UUID: &str = "7f2f6a3c-51a8-4a51-9c37-70616765666e";
const HASH_SEED: &str = "2b1f2e0a-93c1-4f57-8d0e-63655f736565";
/// The time that e2fsprogs writes instead of now: 2024-01-01.
const FAKE_TIME: &str = "1704067200";

/// Makes a clean image, filled.
pub(crate) fn clean(variant: &Variant, directory: &Path, seed: u64) -> Result<Outcome> {
    let image = image_path(directory, &variant.name);
    if let Some(reason) = format(variant, &image)? {
        return Ok(Outcome::Skipped { reason });
    }
    let scratch = Scratch::new()?;
    let mount_point = scratch.directory("mnt")?;
    let mount = match mount(variant, &image, &mount_point, "")? {
        Ok(mount) => mount,
        Err(reason) => {
            std::fs::remove_file(&image)?;
            return Ok(Outcome::Skipped { reason });
        }
    };
    let filled = fill::everything(&mount_point, variant, seed);
    mount.unmount()?;
    let mut skipped = filled?;
    for adjustment in &variant.after_fill {
        if let Some(reason) = adjust(&image, adjustment)? {
            skipped.push(reason);
        }
    }
    if !variant.after_fill.is_empty() {
        // A changed project moves usage from one quota to another.
        output("e2fsck", ["-fy".as_ref(), image.as_os_str()])?;
    }
    make_sure_it_is_sound(&image)?;
    Ok(Outcome::Made { skipped })
}

/// Runs mke2fs and the adjustments that come before the first mount; gives the reason if this
/// mke2fs can't make it.
pub(crate) fn format(variant: &Variant, image: &Path) -> Result<Option<String>> {
    let file = File::create(image).with_context(|| format!("cannot make {}", image.display()))?;
    file.set_len(variant.size_mib << 20)?;
    drop(file);
    let output = command("mke2fs", ["-q", "-F", "-t", variant.kind])
        .args(["-O", &format!("none,{}", variant.features)])
        .args(["-b", &variant.block_bytes.to_string()])
        .args(["-I", &variant.inode_bytes.to_string()])
        .args(["-N", &variant.inodes.to_string()])
        .args(["-U", UUID, "-E", &format!("hash_seed={HASH_SEED}")])
        .args(&variant.make_arguments)
        .arg(image)
        .env("E2FSPROGS_FAKE_TIME", FAKE_TIME)
        .output()
        .context("cannot run mke2fs")?;
    if !output.status.success() {
        std::fs::remove_file(image)?;
        return Ok(Some(format!(
            "mke2fs: {}",
            last_line(&String::from_utf8_lossy(&output.stderr))
        )));
    }
    for adjustment in &variant.before_fill {
        if let Some(reason) = adjust(image, adjustment)? {
            std::fs::remove_file(image)?;
            return Ok(Some(reason));
        }
    }
    Ok(None)
}

/// Mounts it for filling; the inner error is the reason why this kernel doesn't.
pub(crate) fn mount(
    variant: &Variant,
    image: &Path,
    mount_point: &Path,
    more_options: &str,
) -> Result<std::result::Result<KernelMount, String>> {
    let options: Vec<&str> = ["rw", variant.mount_options, more_options]
        .into_iter()
        .filter(|option| !option.is_empty())
        .collect();
    match KernelMount::new(image, mount_point, Access::ReadWrite, &options.join(",")) {
        Ok(mount) => Ok(Ok(mount)),
        Err(error) => {
            let message = format!("{error:#}");
            ensure!(
                message.contains("mount: ") || message.contains("mount failed"),
                message
            );
            Ok(Err(format!(
                "this kernel does not mount it for writing ({})",
                kernel_log_about_ext4()?.unwrap_or_else(|| last_line(&message))
            )))
        }
    }
}

/// The last line about ext4 in the kernel's log: why it refused a mount.
fn kernel_log_about_ext4() -> Result<Option<String>> {
    let log = output("dmesg", std::iter::empty::<&str>())?;
    let log = String::from_utf8_lossy(&log.stdout).into_owned();
    Ok(log
        .lines()
        .rfind(|line| line.contains("EXT4-fs"))
        .and_then(|line| line.split_once("EXT4-fs"))
        .map(|(_, message)| format!("EXT4-fs{message}")))
}

/// Applies an adjustment; gives the reason if the tool refuses.
fn adjust(image: &Path, adjustment: &Adjustment) -> Result<Option<String>> {
    match adjustment {
        Adjustment::Tune(arguments) => {
            let output = command("tune2fs", arguments)
                .arg(image)
                .env("E2FSPROGS_FAKE_TIME", FAKE_TIME)
                .output()?;
            if !output.status.success() {
                return Ok(Some(format!(
                    "tune2fs {arguments:?}: {}",
                    last_line(&String::from_utf8_lossy(&output.stderr))
                )));
            }
        }
        Adjustment::Debug(request) => debugfs(image, request)?,
    }
    Ok(None)
}

/// Lets debugfs change the image. debugfs exits 0 on failure, so what it prints decides.
pub(crate) fn debugfs(image: &Path, request: &str) -> Result<()> {
    let output = command("debugfs", ["-w", "-R", request])
        .arg(image)
        .output()
        .context("cannot run debugfs")?;
    let printed = String::from_utf8_lossy(&output.stderr);
    let complaint = printed.lines().find(|line| !line.starts_with("debugfs "));
    if let Some(complaint) = complaint {
        bail!("debugfs {request}: {complaint}");
    }
    Ok(())
}

/// `e2fsck -fn` finds nothing.
pub(crate) fn make_sure_it_is_sound(image: &Path) -> Result<()> {
    let output = output("e2fsck", ["-fn".as_ref(), image.as_os_str()])?;
    ensure!(
        output.status.success(),
        "e2fsck does not like what mke2fs and the kernel made: {}",
        String::from_utf8_lossy(&output.stdout)
    );
    Ok(())
}

fn last_line(text: &str) -> String {
    text.lines()
        .rfind(|line| !line.trim().is_empty())
        .unwrap_or("no reason given")
        .trim()
        .to_owned()
}
