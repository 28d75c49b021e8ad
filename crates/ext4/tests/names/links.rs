//! Directories with more subdirectories than a link count can say.

use pagefence_ext4::mkfs::{Contents, Kind, Parameters};
use pagefence_vfs::FileSystem as _;

use crate::kit::{self, Paths, close, fails, open};

fn with_inodes(features: &str) -> std::sync::Arc<pagefence_block_io::MemoryDevice> {
    let mut parameters = Parameters::new(Kind::Ext4);
    parameters.block_size = Some(1024);
    parameters.contents = Contents::Zeros;
    parameters.inodes = Some(70_000);
    if !features.is_empty() {
        parameters.features.edit(features).unwrap();
    }
    kit::format(&parameters, 200 << 20)
}

#[test]
fn past_65000_subdirectories_the_count_is_one() {
    // Without inline data each directory takes a block.
    let device = with_inodes("inline_data");
    let fs = open(&device);
    fs.mkdir("d").unwrap();
    for at in 0..64_998 {
        fs.mkdir(&format!("d/{at}")).unwrap();
    }
    assert_eq!(fs.look("d").unwrap().links, 65_000);
    fs.mkdir("d/more").unwrap();
    assert_eq!(fs.look("d").unwrap().links, 1);
    fs.mkdir("d/and more").unwrap();
    assert_eq!(fs.look("d").unwrap().links, 1);
    fs.rmd("d/5").unwrap();
    assert_eq!(fs.look("d").unwrap().links, 1);
    fs.mv("d/6", "e").unwrap();
    assert_eq!(fs.look("d").unwrap().links, 1);
    fails(fs.rmdir(fs.root(), b"d"), "NotEmpty");
    close(fs, &device);
}

#[test]
fn without_dir_nlink_65000_is_the_end() {
    let device = with_inodes("inline_data,^dir_nlink");
    let fs = open(&device);
    fs.mkdir("d").unwrap();
    fs.mkdir("e").unwrap();
    for at in 0..64_998 {
        fs.mkdir(&format!("d/{at}")).unwrap();
    }
    fails(fs.mkdir("d/more"), "TooManyLinks");
    fails(fs.mv("e", "d/more"), "TooManyLinks");
    fs.rmd("d/5").unwrap();
    fs.mv("e", "d/more").unwrap();
    close(fs, &device);
}
