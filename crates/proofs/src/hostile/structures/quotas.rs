//! Quota files: the header, the tree, the entries.

use pagefence_ext4_format::features::RoCompat;
use pagefence_ext4_format::quota::{
    BLOCK_BYTES, LEVELS, QuotaKind, ROOT, RawEntriesHeader, RawEntry, RawHeader, references,
};
use pagefence_ext4_format::{BlockNo, InodeNo};

use super::{Seal, Survey};
use crate::hostile::values::{Field, fields_of};

impl Survey<'_> {
    pub(super) fn quotas(&mut self) {
        let superblock = &self.layout.superblock;
        if !superblock.has_ro_compat(RoCompat::QUOTA) {
            return;
        }
        for (kind, number) in QuotaKind::ALL.into_iter().zip(superblock.quota_inodes()) {
            if let Some(number) = number {
                self.quotas_of(kind, number);
            }
        }
    }

    fn quotas_of(&mut self, kind: QuotaKind, number: InodeNo) {
        let what = format!("quotas of {kind}s");
        self.inode(&what, number);
        let layout = self.layout;
        let Some(inode) = layout.inode(number) else {
            return;
        };
        let blocks: Vec<BlockNo> = layout.map(&inode).blocks().collect();
        // A quota file has no holes.
        let place = |block: u32| {
            let at = u64::from(block) * BLOCK_BYTES;
            let block_size = layout.block_size() as u64;
            let start = blocks.get((at / block_size) as usize)?;
            Some((
                layout.offset(*start) + at % block_size,
                BLOCK_BYTES as usize,
            ))
        };
        let mut push = |part: &str, block: u32, fields: Vec<Field>| {
            if let Some(place) = place(block) {
                self.push(
                    format!("{part} of {what}"),
                    place,
                    Seal::Plain,
                    fields,
                    block.into(),
                );
            }
        };
        let header = fields_of!(RawHeader:
            dqh_magic dqh_version dqi_bgrace dqi_igrace dqi_flags dqi_blocks dqi_free_blk
            dqi_free_entry);
        push("header", 0, header);
        // The way to the lowest id.
        let mut block = ROOT;
        for level in 0..LEVELS {
            let bytes = place(block).and_then(|(offset, length)| layout.read(offset, length));
            let bytes = bytes.unwrap_or_default();
            let Some((byte, to)) = references(&bytes).next() else {
                return;
            };
            let reference = |slot: usize| Field::new(format!("reference {slot}"), 4 * slot, 4);
            let slots = [usize::from(byte), 99];
            push(
                &format!("node {level}"),
                block,
                slots.map(reference).to_vec(),
            );
            block = to;
        }
        let mut fields = fields_of!(RawEntriesHeader:
            dqdh_next_free dqdh_prev_free dqdh_entries dqdh_pad1 dqdh_pad2);
        let entry = fields_of!(RawEntry:
            dqb_id dqb_pad dqb_ihardlimit dqb_isoftlimit dqb_curinodes dqb_bhardlimit
            dqb_bsoftlimit dqb_curspace dqb_btime dqb_itime);
        fields.extend(entry.into_iter().map(|field| Field {
            at: field.at + size_of::<RawEntriesHeader>(),
            ..field
        }));
        push("entries", block, fields);
    }
}
