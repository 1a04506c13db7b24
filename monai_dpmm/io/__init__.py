"""Files to volumes and back: data sets, layouts, loading, DICOM, output formats."""
