//! Hostile images: every field of every structure is set to each awkward value, its checksum mended;
//! the image is opened, gone over in full, and written to. Whatever comes of it is an error that says
//! what is wrong, or nothing: no panic, no hang, no memory or I/O without bound, no name that leads
//! elsewhere, and no data where the file system's own metadata lies.
//!
//! Cases run in processes of their own, so that one that aborts, overflows its stack or hangs is a
//! failure that is told with its case. Whoever tries them is started again with [`served`] in the way.

mod agreement;
mod batch;
mod case;
mod device;
mod fast_commits;
mod fuzzed;
mod images;
mod layout;
mod structures;
mod values;
mod walk;
mod work;

use crate::{Plan, Row, e2fsck};

pub use batch::{Launcher, served};
pub use fuzzed::Fuzzed;
pub use images::{Maker, Recipe, recipes};

/// The cases of one image, in an order that the seed decides, for as long as there is time.
#[must_use]
pub fn prove_fields(recipe: &Recipe, plan: &Plan, launcher: &Launcher) -> Row {
    let mut row = Row::new(format!("hostile fields, {recipe}"), plan.seed);
    let image = match images::make(recipe) {
        Ok(image) => image,
        Err(lack) => {
            row.skipped.push(lack);
            return row;
        }
    };
    if !e2fsck::is_there() {
        let lack = "there is no e2fsck: what the check finds is not compared";
        row.skipped.push(lack.to_owned());
    }
    batch::run(&image, plan, launcher, &mut row);
    row
}
