"""How fast DICOM headers are indexed."""
