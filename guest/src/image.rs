//! Every byte of RAM that is not zero when the guest starts.

use paguro_workload::{Params, word};

use crate::entry::EntryState;
use crate::layout::{
    DIRECTORIES_GPA, GDT_GPA, PAGE_BYTES, PARAMS_GPA, PDPT_GPA, PML4_GPA, PROGRAM_GPA, TSS_GPA,
    TSS_LIMIT, stack_of,
};

/// Bytes that belong at a guest-physical address below 2 MiB.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Piece {
    /// Where the first byte goes.
    pub gpa: u64,
    /// The bytes; no two pieces overlap.
    pub bytes: Vec<u8>,
}

/// Why there is no image.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ImageError {
    /// There is no guest program for this architecture; `--accel threads` needs none.
    #[error("there is no built-in guest for this architecture")]
    Unsupported,
    /// The embedded program is not what the build script should have made: a bug.
    #[error("bug: the built-in guest program is not a static program of its layout ({0})")]
    Program(&'static str),
}

/// What must be in RAM before `params`' workload starts; all other RAM must be zero. With
/// [`threads`](Params::threads) that is the parameters alone.
///
/// # Errors
///
/// [`ImageError::Unsupported`] where there is no guest program and threads were not asked for.
pub fn image(params: &Params) -> Result<Vec<Piece>, ImageError> {
    let mut pieces = vec![Piece {
        gpa: PARAMS_GPA,
        bytes: params.to_bytes().to_vec(),
    }];
    if params.threads {
        return Ok(pieces);
    }
    if !crate::SUPPORTED {
        return Err(ImageError::Unsupported);
    }
    pieces.push(gdt());
    pieces.push(tss());
    pieces.extend((0..params.vcpus).map(|vcpu| stack(params.seed, vcpu)));
    pieces.extend(program().map_err(ImageError::Program)?.segments);
    pieces.extend(page_tables(params.mapped_gib));
    Ok(pieces)
}

fn gdt() -> Piece {
    let entry = EntryState::of_vcpu(0);
    let mut bytes = vec![0; usize::from(entry.gdt.limit) + 1];
    for (at, descriptor) in entry.gdt_entries() {
        bytes[at..at + descriptor.len()].copy_from_slice(&descriptor);
    }
    Piece {
        gpa: GDT_GPA,
        bytes,
    }
}

/// All ports below 0xcb8 are open; the byte of ones that must follow the bitmap ends it.
fn tss() -> Piece {
    const BITMAP: u16 = 104;
    let mut bytes = vec![0; TSS_LIMIT as usize + 1];
    bytes[102..104].copy_from_slice(&BITMAP.to_le_bytes());
    bytes[TSS_LIMIT as usize] = 0xff;
    Piece {
        gpa: TSS_GPA,
        bytes,
    }
}

/// Writer number under which the filling of the stack pages is made.
const STACK_WRITER: u64 = 2048;

/// A stack page is not empty: if one is lost or comes from elsewhere, its filling shows it.
fn stack(seed: u64, vcpu: u64) -> Piece {
    let words = (0..PAGE_BYTES as usize / 8).map(|i| word(seed, STACK_WRITER, vcpu, 0, i));
    Piece {
        gpa: stack_of(vcpu),
        bytes: words.flat_map(u64::to_le_bytes).collect(),
    }
}

const PRESENT: u64 = 1;
const WRITABLE: u64 = 1 << 1;
const USER: u64 = 1 << 2;
// Set beforehand, so that the CPU never writes to the tables.
const ACCESSED: u64 = 1 << 5;
const DIRTY: u64 = 1 << 6;
const LARGE: u64 = 1 << 7;

/// Maps the first `gib` GiB one to one in 2 MiB pages, holes and progress memory included.
fn page_tables(gib: u64) -> Vec<Piece> {
    let table = PRESENT | WRITABLE | USER | ACCESSED;
    let page = table | DIRTY | LARGE;
    let piece = |gpa, entries: &mut dyn Iterator<Item = u64>| Piece {
        gpa,
        bytes: entries.flat_map(u64::to_le_bytes).collect(),
    };
    let mut pieces = vec![
        piece(PML4_GPA, &mut [PDPT_GPA | table].into_iter()),
        piece(
            PDPT_GPA,
            &mut (0..gib).map(|g| (DIRECTORIES_GPA + g * PAGE_BYTES) | table),
        ),
    ];
    pieces.extend((0..gib).map(|g| {
        piece(
            DIRECTORIES_GPA + g * PAGE_BYTES,
            &mut (0..512).map(|i| ((g << 30) + (i << 21)) | page),
        )
    }));
    pieces
}

struct Program {
    entry: u64,
    segments: Vec<Piece>,
}

/// Where the program is entered; `None` where there is none.
pub(crate) fn entry_point() -> Option<u64> {
    program().ok().map(|program| program.entry)
}

/// Reads the embedded ELF file: its entry and what it loads.
fn program() -> Result<Program, &'static str> {
    const LOAD: u32 = 1;
    const WRITE: u32 = 2;
    let elf = crate::PROGRAM;
    if elf.get(..6) != Some(b"\x7fELF\x02\x01") {
        return Err("not a 64-bit ELF file");
    }
    let headers = u64_at(elf, 32)?;
    let mut segments = Vec::new();
    for i in 0..u64::from(u16_at(elf, 56)?) {
        let header = headers + 56 * i;
        if u32_at(elf, header)? != LOAD {
            continue;
        }
        let [offset, gpa, file_bytes, memory_bytes] =
            [8, 16, 32, 40].map(|field| u64_at(elf, header + field));
        let (offset, gpa, bytes) = (offset?, gpa?, file_bytes?);
        if memory_bytes? != bytes || u32_at(elf, header + 4)? & WRITE != 0 {
            return Err("a writable segment");
        }
        if bytes == 0 {
            continue;
        }
        if gpa < PROGRAM_GPA || gpa.saturating_add(bytes) > PML4_GPA {
            return Err("a segment out of place");
        }
        segments.push(Piece {
            gpa,
            bytes: range(elf, offset, bytes)?.to_vec(),
        });
    }
    Ok(Program {
        entry: u64_at(elf, 24)?,
        segments,
    })
}

fn range(elf: &[u8], offset: u64, bytes: u64) -> Result<&[u8], &'static str> {
    let end = offset.checked_add(bytes).ok_or("a segment without end")?;
    elf.get(offset as usize..end as usize)
        .ok_or("a segment beyond the file")
}

fn field<const N: usize>(elf: &[u8], offset: u64) -> Result<[u8; N], &'static str> {
    let bytes = range(elf, offset, N as u64)?;
    bytes.try_into().map_err(|_| "a header beyond the file")
}

fn u16_at(elf: &[u8], offset: u64) -> Result<u16, &'static str> {
    field(elf, offset).map(u16::from_le_bytes)
}

fn u32_at(elf: &[u8], offset: u64) -> Result<u32, &'static str> {
    field(elf, offset).map(u32::from_le_bytes)
}

fn u64_at(elf: &[u8], offset: u64) -> Result<u64, &'static str> {
    field(elf, offset).map(u64::from_le_bytes)
}

#[cfg(all(test, target_arch = "x86_64"))]
mod tests {
    use super::*;
    use crate::layout::AREA_START;
    use paguro_workload::{Setup, Spec};

    const GIB: u64 = 1 << 30;

    fn params(ram: &[(u64, u64)], vcpus: u64, threads: bool) -> Params {
        Params::new(&Setup {
            spec: Spec::default(),
            vcpus,
            ram,
            ticks_per_s: 1 << 31,
            gap_threshold_us: 50,
            threads,
            dma: false,
            dma_direct: false,
        })
        .unwrap()
    }

    #[test]
    fn pieces_are_below_the_area_and_do_not_overlap() {
        for (ram, vcpus) in [
            (vec![(0, 64 << 20)], 1),
            (vec![(0, 3 * GIB), (4 * GIB, 61 * GIB)], 64),
            (vec![(0, 3 * GIB), (4 * GIB, 186 * GIB)], 64),
        ] {
            let mut pieces = image(&params(&ram, vcpus, false)).unwrap();
            pieces.sort_by_key(|piece| piece.gpa);
            let mut end_before = 0;
            for piece in &pieces {
                assert!(piece.gpa >= end_before, "{:#x}", piece.gpa);
                end_before = piece.gpa + piece.bytes.len() as u64;
            }
            assert!(end_before <= AREA_START);
        }
    }

    #[test]
    fn threads_need_their_parameters_only() {
        let params = params(&[(0, GIB)], 2, true);
        let pieces = image(&params).unwrap();
        assert_eq!(pieces.len(), 1);
        assert_eq!(pieces[0].bytes, params.to_bytes());
    }

    #[test]
    fn the_program_is_entered_in_its_code() {
        let program = program().unwrap();
        let code = &program.segments[0];
        assert!((code.gpa..code.gpa + code.bytes.len() as u64).contains(&program.entry));
        assert_eq!(EntryState::of_vcpu(3).rip, program.entry);
    }

    #[test]
    fn tables_map_every_address_to_itself() {
        let pieces = page_tables(5);
        let entry = |table: u64, index: u64| {
            let piece = pieces.iter().find(|piece| piece.gpa == table).unwrap();
            u64_at(&piece.bytes, index * 8).unwrap()
        };
        let address = 0xf_ffff_ffff_f000;
        for gpa in [0, 0x20_0000, 0xd000_0000, 3 * GIB - 1, 4 * GIB, 5 * GIB - 1] {
            let pdpt = entry(PML4_GPA, gpa >> 39) & address;
            let directory = entry(pdpt, gpa >> 30 & 511) & address;
            let page = entry(directory, gpa >> 21 & 511);
            assert_eq!(page & 0xfff, 0xe7);
            assert_eq!((page & address) + (gpa & 0x1f_ffff), gpa);
        }
    }
}
