"""The report: one HTML file that shows a run or a study, without any network."""
