"""Online retail: one workbook behind a URL, by day, to the warehouse and its marts."""
