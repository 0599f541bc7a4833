"""Recognise and read data sets in the usual formats; each becomes a document in COCO's form."""
