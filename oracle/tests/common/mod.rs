//! RAM in a vector, written by naive replay.

use std::io;

use paguro_guest::image;
use paguro_oracle::{DeviceWriter, Memory};
use paguro_workload::area::{DMA, DMA_DIRECT};
use paguro_workload::layout::{AREA_START, HIGH_RAM_GPA, PAGE_BYTES, PARAMS_GPA};
use paguro_workload::mailbox::{BEGUN, DONE, MARK, mark};
use paguro_workload::{Op, Params, Setup, Spec, Stream};

/// Guest RAM.
pub struct Ram {
    pub params: Params,
    pub parts: Vec<(u64, u64)>,
    pub bytes: Vec<u8>,
    pub devices: Vec<DeviceWriter>,
}

impl Memory for Ram {
    fn ram(&self) -> &[(u64, u64)] {
        &self.parts
    }

    fn read(&self, gpa: u64, buffer: &mut [u8]) -> io::Result<()> {
        let at = self.index(gpa);
        buffer.copy_from_slice(&self.bytes[at..at + buffer.len()]);
        Ok(())
    }
}

/// A machine to build RAM for.
pub struct Machine {
    pub spec: Spec,
    pub vcpus: u64,
    /// Pages of the workload area, of which some may lie above 4 GiB.
    pub low_pages: u64,
    pub high_pages: u64,
    pub threads: bool,
    pub dma: bool,
    pub dma_direct: bool,
}

impl Machine {
    pub fn new(spec: &str, vcpus: u64) -> Self {
        Self {
            spec: spec.parse().unwrap(),
            vcpus,
            low_pages: 40,
            high_pages: 25,
            threads: false,
            dma: false,
            dma_direct: false,
        }
    }

    /// RAM after the vCPUs did `done` writes each and the devices did `device_writes`.
    pub fn after(&self, done: &[u64], device_writes: u64) -> Ram {
        let mut parts = vec![(0, AREA_START + self.low_pages * PAGE_BYTES)];
        if self.high_pages > 0 {
            parts.push((HIGH_RAM_GPA, self.high_pages * PAGE_BYTES));
        }
        let params = Params::new(&Setup {
            spec: self.spec,
            vcpus: self.vcpus,
            ram: &parts,
            ticks_per_s: 1 << 31,
            gap_threshold_us: 50,
            threads: self.threads,
            dma: self.dma,
            dma_direct: self.dma_direct,
        })
        .unwrap();
        let size = parts.iter().map(|part| part.1).sum::<u64>() as usize;
        let mut ram = Ram {
            params,
            parts,
            bytes: vec![0; size],
            devices: Vec::new(),
        };
        for piece in image(&params).unwrap() {
            let at = ram.index(piece.gpa);
            ram.bytes[at..at + piece.bytes.len()].copy_from_slice(&piece.bytes);
        }
        for (vcpu, &done) in (0..).zip(done) {
            let stream = Stream::vcpu(&params, vcpu);
            (0..done).for_each(|n| ram.write(&stream, n, stream.words()));
            ram.set_counters(vcpu, done, done, 2 * done);
        }
        for writer in [DMA, DMA_DIRECT] {
            if let Some(stream) = Stream::device(&params, writer) {
                (0..device_writes).for_each(|n| ram.write(&stream, n, stream.words()));
                ram.devices.push(DeviceWriter {
                    writer,
                    done: device_writes,
                });
            }
        }
        ram
    }
}

impl Ram {
    pub fn index(&self, gpa: u64) -> usize {
        let low = self.parts[0].1;
        (if gpa < low {
            gpa
        } else {
            gpa - HIGH_RAM_GPA + low
        }) as usize
    }

    pub fn put(&mut self, gpa: u64, word: u64) {
        let at = self.index(gpa);
        self.bytes[at..at + 8].copy_from_slice(&word.to_le_bytes());
    }

    pub fn set_counters(&mut self, vcpu: u64, begun: u64, done: u64, step: u64) {
        let mailbox = self.params.mailbox_of(vcpu);
        self.put(mailbox + BEGUN as u64, begun);
        self.put(mailbox + DONE as u64, done);
        self.put(mailbox + MARK as u64, mark(step));
    }

    /// Stores the first `words` words of write `n`.
    pub fn write(&mut self, stream: &Stream, n: u64, words: usize) {
        let page = stream.page(n);
        let gpa = self.params.area.gpa(page);
        for i in 0..words {
            if stream.op() == Op::Write {
                self.put(gpa + 8 * i as u64, stream.content(page, n).word(i));
            }
        }
    }

    /// Changes the parameters and puts them where they belong.
    #[allow(dead_code)]
    pub fn set_params(&mut self, params: Params) {
        self.params = params;
        let at = PARAMS_GPA as usize;
        let bytes = params.to_bytes();
        self.bytes[at..at + bytes.len()].copy_from_slice(&bytes);
    }
}
