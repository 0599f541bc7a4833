"""One folder per op: public function, schema, reference, one file per backend, and its README."""
