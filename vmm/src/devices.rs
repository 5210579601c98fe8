//! The device sections of a picture.
//!
//! A machine takes exactly the sections that belong to it. One that is missing, one too many,
//! and one of another machine are each refused by name, before anything is changed.

use paguro_wire::device::{DeviceError, DeviceSection, SectionReader, SectionWriter};
use paguro_wire::globalstate;

use crate::{Accel, Config, DmaConfig, VmError, dma, threads};

const SECTION: &str = "paguro/machine";
const VERSION: u32 = 1;

/// Sections that are the engine's, not the machine's.
const ENGINE_SECTIONS: [&str; 1] = [globalstate::NAME];

/// What a picture says about the machine it was taken of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Described {
    /// What ran its vCPUs.
    pub accel: Accel,
    /// Its vCPUs.
    pub cpus: u32,
    /// Its RAM.
    pub memory_bytes: u64,
    /// RAM in the first block, if there is a second.
    pub ram_split: Option<u64>,
    /// The device `x-dma`, if it has one.
    pub dma: Option<DmaConfig>,
}

/// Reads what machine a picture was taken of, so that options left out can be filled in.
///
/// # Errors
///
/// [`VmError::MissingSection`] and [`VmError::Section`]: it is no picture of such a machine.
pub fn describe(sections: &[DeviceSection]) -> Result<Described, VmError> {
    let find = |name: &str| sections.iter().find(|section| section.name == name);
    let section = find(SECTION).ok_or(VmError::MissingSection {
        name: SECTION,
        instance: 0,
    })?;
    let machine = read(section)?;
    let dma = find(dma::SECTION).map(dma::DmaState::read).transpose()?;
    Ok(Described {
        dma: dma.map(|state| state.config),
        ..machine
    })
}

pub(crate) fn save(config: &Config) -> Result<DeviceSection, VmError> {
    Ok(SectionWriter::new(SECTION, 0, VERSION)
        .buffer("accel", config.accel.name().as_bytes())
        .u32("cpus", config.cpus)
        .u64("memory_bytes", config.memory_bytes)
        .u64("low_memory_bytes", low_bytes(config)?)
        .finish()?)
}

fn low_bytes(config: &Config) -> Result<u64, VmError> {
    Ok(config
        .ram_layout()?
        .first()
        .map_or(0, |block| block.bytes as u64))
}

fn read(section: &DeviceSection) -> Result<Described, DeviceError> {
    let mut reader = SectionReader::open(section, SECTION, 1..=VERSION)?;
    let accel = reader.buffer("accel")?;
    let known = [Accel::Kvm, Accel::Threads];
    let Some(accel) = known
        .into_iter()
        .find(|known| known.name().as_bytes() == accel)
    else {
        let found = String::from_utf8_lossy(&accel[..accel.len().min(32)]).into_owned();
        return Err(reader.bad_value("accel", "kvm or threads", found));
    };
    let cpus = reader.u32("cpus")?;
    let memory_bytes = reader.u64("memory_bytes")?;
    let low = reader.u64("low_memory_bytes")?;
    reader.finish()?;
    let ram_split = (low < memory_bytes).then_some(low);
    Ok(Described {
        accel,
        cpus,
        memory_bytes,
        ram_split,
        dma: None,
    })
}

/// The sections of a picture, to be taken one by one.
pub(crate) struct Sections<'a> {
    left: Vec<&'a DeviceSection>,
}

impl<'a> Sections<'a> {
    /// The sections of a machine like `config`'s.
    pub(crate) fn new(sections: &'a [DeviceSection], config: &Config) -> Result<Self, VmError> {
        let machine = sections
            .iter()
            .filter(|s| !ENGINE_SECTIONS.contains(&s.name.as_str()));
        let mut sections = Self {
            left: machine.collect(),
        };
        let picture = read(sections.take(SECTION, 0)?)?;
        compare("the accelerator", picture.accel.name(), config.accel.name())?;
        compare("a number of vCPUs of", picture.cpus, config.cpus)?;
        compare(
            "a memory size in bytes of",
            picture.memory_bytes,
            config.memory_bytes,
        )?;
        let low = picture.ram_split.unwrap_or(picture.memory_bytes);
        compare("a first RAM block in bytes of", low, low_bytes(config)?)?;
        sections.refuse_unknown(config)?;
        Ok(sections)
    }

    pub(crate) fn take(
        &mut self,
        name: &'static str,
        instance: u32,
    ) -> Result<&'a DeviceSection, VmError> {
        let is_it = |s: &&DeviceSection| s.name == name && s.instance == instance;
        match self.left.iter().position(is_it) {
            Some(index) => Ok(self.left.swap_remove(index)),
            None => Err(VmError::MissingSection { name, instance }),
        }
    }

    fn refuse_unknown(&self, config: &Config) -> Result<(), VmError> {
        let mut seen: Vec<(&str, u32)> = Vec::new();
        for section in &self.left {
            let key = (section.name.as_str(), section.instance);
            let known = match key {
                ("paguro/cpu", index) => config.accel == Accel::Kvm && index < config.cpus,
                ("paguro/irqchip" | "paguro/clock" | "paguro/serial", 0) => {
                    config.accel == Accel::Kvm
                }
                (threads::SECTION, 0) => config.accel == Accel::Threads,
                (dma::SECTION, 0) => config.dma.is_some(),
                _ => false,
            };
            if !known || seen.contains(&key) {
                return Err(VmError::UnknownSection {
                    name: section.name.clone(),
                    instance: section.instance,
                });
            }
            seen.push(key);
        }
        Ok(())
    }
}

pub(crate) fn compare<T: PartialEq + ToString>(
    what: &'static str,
    picture: T,
    machine: T,
) -> Result<(), VmError> {
    if picture == machine {
        return Ok(());
    }
    let (picture, machine) = (picture.to_string(), machine.to_string());
    Err(VmError::OtherMachine {
        what,
        picture,
        machine,
    })
}
