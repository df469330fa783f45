//! Tables as Docker's: columns at least ten wide, three blanks between them. What
//! would act on the terminal or break a line is escaped in every cell.

use crate::display::escaped;

const LEAST: usize = 10;
const GAP: usize = 3;

/// The lines of a table whose first row are the headings.
pub(crate) fn lines(rows: &[Vec<String>]) -> String {
    let rows: Vec<Vec<String>> = rows
        .iter()
        .map(|row| row.iter().map(|cell| escaped(cell)).collect())
        .collect();
    let columns = rows.iter().map(Vec::len).max().unwrap_or(0);
    let widths: Vec<usize> = (0..columns)
        .map(|column| {
            rows.iter()
                .filter_map(|row| row.get(column))
                .map(|cell| cell.chars().count())
                .max()
                .unwrap_or(0)
                .saturating_add(GAP)
                .max(LEAST)
        })
        .collect();
    let mut text = String::new();
    for row in &rows {
        for (column, cell) in row.iter().enumerate() {
            text.push_str(cell);
            if column + 1 < row.len() {
                let blanks = widths[column].saturating_sub(cell.chars().count());
                text.extend(std::iter::repeat_n(' ', blanks));
            }
        }
        text.push('\n');
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_align_and_the_last_has_no_blanks() {
        let row = |cells: [&str; 3]| cells.map(str::to_owned).to_vec();
        assert_eq!(
            lines(&[row(["ID", "A LONG HEADING", "LAST"]), row(["é", "x", ""])]),
            "ID        A LONG HEADING   LAST\né         x                \n"
        );
    }

    #[test]
    fn a_cell_cannot_act_on_the_terminal() {
        let row = ["\x1b[2J".to_owned(), "a\nb".to_owned()].to_vec();
        assert_eq!(lines(&[row]), "\\x1b[2J   a\\nb\n");
    }
}
