//! The blocks of the journal: its superblock, and what the log holds.

use pagefence_ext4_format::BlockNo;
use pagefence_ext4_format::journal::{BlockKind, Header, MAGIC_BYTES};

use super::{Seal, Survey, log_seed};
use crate::hostile::values::Field;

/// Blocks of each kind that are looked at.
const BLOCKS: usize = 2;

/// Big-endian fields.
fn big(fields: &[(&str, usize, usize)]) -> Vec<Field> {
    let field = |(name, at, width): &(&str, usize, usize)| Field::big(*name, *at, *width);
    fields.iter().map(field).collect()
}

const HEADER: [(&str, usize, usize); 3] = [
    ("h_magic", 0, 4),
    ("h_blocktype", 4, 4),
    ("h_sequence", 8, 4),
];

impl Survey<'_> {
    /// The journal's own blocks.
    pub(super) fn log(&mut self) {
        let layout = self.layout;
        let number = layout.superblock.journal_inode();
        let Some(inode) = number.and_then(|number| layout.inode(number)) else {
            return;
        };
        let blocks: Vec<BlockNo> = layout.map(&inode).blocks().collect();
        let Some(journal) = blocks.first().and_then(|first| layout.read_block(*first)) else {
            return;
        };
        let seed = log_seed(&journal);
        self.journal_superblock(blocks[0], seed.is_some());
        let mut met = [0; 3];
        for block in &blocks[1..] {
            let Some(bytes) = layout
                .read_block(*block)
                .filter(|it| it.starts_with(&MAGIC_BYTES))
            else {
                continue;
            };
            let end = bytes.len();
            let (kind, what, at) = match Header::parse(&bytes).map(|header| header.kind) {
                Some(BlockKind::Descriptor) => (0, "descriptor block", end - 4),
                Some(BlockKind::Commit) => (1, "commit block", 16),
                Some(BlockKind::Revoke) => (2, "revoke block", end - 4),
                _ => continue,
            };
            met[kind] += 1;
            if met[kind] > BLOCKS {
                continue;
            }
            let mut fields = big(&HEADER);
            fields.extend(big(match kind {
                0 => &[
                    ("0.t_blocknr", 12, 4),
                    ("0.t_flags", 16, 4),
                    ("0.t_flags_lo", 18, 2),
                    ("0.t_blocknr_high", 20, 4),
                    ("0.t_checksum", 24, 4),
                    ("1.t_blocknr", 44, 4),
                    ("1.t_flags", 48, 4),
                    ("1.t_blocknr_high", 52, 4),
                ],
                1 => &[
                    ("h_chksum_type", 12, 1),
                    ("h_chksum_size", 13, 1),
                    ("h_commit_sec", 48, 8),
                    ("h_commit_nsec", 56, 4),
                ],
                _ => &[
                    ("r_count", 12, 4),
                    ("0.hi", 16, 4),
                    ("0.lo", 20, 4),
                    ("1.hi", 24, 4),
                    ("1.lo", 28, 4),
                ],
            }));
            let seal = seed.map_or(Seal::Plain, |seed| Seal::Log { seed, at });
            self.push_block(format!("{what} {}", met[kind]), *block, seal, fields);
        }
        self.fast_commits(&journal, &blocks);
    }

    fn journal_superblock(&mut self, block: BlockNo, has_checksum: bool) {
        let mut fields = big(&HEADER);
        fields.extend(big(&[
            ("s_blocksize", 0x0C, 4),
            ("s_maxlen", 0x10, 4),
            ("s_first", 0x14, 4),
            ("s_sequence", 0x18, 4),
            ("s_start", 0x1C, 4),
            ("s_errno", 0x20, 4),
            ("s_feature_compat", 0x24, 4),
            ("s_feature_incompat", 0x28, 4),
            ("s_feature_incompat byte", 0x2B, 1),
            ("s_feature_ro_compat", 0x2C, 4),
            ("s_uuid", 0x30, 4),
            ("s_nr_users", 0x40, 4),
            ("s_dynsuper", 0x44, 4),
            ("s_max_transaction", 0x48, 4),
            ("s_max_trans_data", 0x4C, 4),
            ("s_checksum_type", 0x50, 1),
            ("s_num_fc_blks", 0x54, 4),
            ("s_head", 0x58, 4),
        ]));
        let seal = match has_checksum {
            true => Seal::Log { seed: !0, at: 0xFC },
            false => Seal::Plain,
        };
        let place = (self.layout.offset(block), 1024);
        self.push("journal superblock", place, seal, fields, block.0);
    }
}
