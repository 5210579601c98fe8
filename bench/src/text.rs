//! Tables, times and sizes for people.

use std::io::{self, Write};

/// Columns of text, the first to the left, the others to the right.
pub struct Table(Vec<Vec<String>>);

impl Table {
    /// With these words over its columns.
    pub fn new(heading: &[&str]) -> Self {
        Self(vec![
            heading.iter().map(|cell| (*cell).to_owned()).collect(),
        ])
    }

    /// One more row; what is missing at its end stays empty.
    pub fn row(&mut self, cells: impl IntoIterator<Item = String>) {
        self.0.push(cells.into_iter().collect());
    }

    /// Prints it and an empty line.
    pub fn print(&self, out: &mut dyn Write) -> io::Result<()> {
        let columns = self.0.iter().map(Vec::len).max().unwrap_or(0);
        let width = |column: usize| {
            let cells = self.0.iter().filter_map(|row| row.get(column));
            cells.map(|cell| cell.chars().count()).max().unwrap_or(0)
        };
        let widths: Vec<usize> = (0..columns).map(width).collect();
        for row in &self.0 {
            let mut line = String::from(" ");
            for (column, cell) in row.iter().enumerate() {
                let width = widths[column];
                line += &if column == 0 {
                    format!(" {cell:<width$}")
                } else {
                    format!("  {cell:>width$}")
                };
            }
            writeln!(out, "{}", line.trim_end())?;
        }
        writeln!(out)
    }
}

/// A time in microseconds, for people.
pub fn time(us: f64) -> String {
    match us.abs() {
        at if at < 0.5 => "0".to_owned(),
        at if at < 999.5 => format!("{us:.0} us"),
        at if at < 99_950.0 => format!("{:.2} ms", us / 1e3),
        at if at < 999_500.0 => format!("{:.0} ms", us / 1e3),
        _ => format!("{:.2} s", us / 1e6),
    }
}

/// Bytes, for people.
pub fn size(bytes: f64) -> String {
    if bytes < 0.0 {
        return format!("-{}", size(-bytes));
    }
    paguro_workload::human(bytes as u64).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_have_a_unit_that_fits() {
        let all = [0.0, 12.4, 999.9, 1500.0, 123_456.0, 2_500_000.0, -2000.0].map(time);
        let wanted = [
            "0", "12 us", "1.00 ms", "1.50 ms", "123 ms", "2.50 s", "-2.00 ms",
        ];
        assert_eq!(all, wanted);
    }

    #[test]
    fn columns_stand_under_each_other() {
        let mut table = Table::new(&["", "a", "long heading"]);
        table.row(["one".to_owned(), "1".to_owned(), "2".to_owned()]);
        let mut out = Vec::new();
        table.print(&mut out).unwrap();
        let text = String::from_utf8(out).unwrap();
        let ends: Vec<usize> = text.trim_end().lines().map(str::len).collect();
        assert_eq!(ends[0], ends[1], "{text}");
    }
}
