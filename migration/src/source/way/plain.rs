//! Pages in the stream, each as a whole.

use super::{Main, Way};
use crate::source::command::Stopped;
use crate::source::outstanding::Due;

/// The main channel and nothing else.
pub(in crate::source) struct Plain;

impl Way for Plain {
    fn send(&mut self, main: &mut Main<'_>, block: usize, due: &Due) -> Result<u64, Stopped> {
        main.pages(|main| {
            let mut zeros = due.gone.len();
            for &page in &due.content {
                zeros += usize::from(!main.stream.page(block, page)?);
            }
            for &page in &due.gone {
                main.stream.zero(block, page)?;
            }
            let total = due.content.len() + due.gone.len();
            main.tally.normal_pages += (total - zeros) as u64;
            main.tally.zero_pages += zeros as u64;
            Ok(())
        })
    }
}
