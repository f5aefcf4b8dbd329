"""DICOMweb (PS3.18) as a store of bytes: what its URLs name, and how it is asked."""
