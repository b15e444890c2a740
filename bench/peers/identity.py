"""The script of the htmapper rows: hands every sample on as it is."""


def process_sample(record):
    return record
