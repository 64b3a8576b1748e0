module github.com/emd-go/emd/benchmarks

go 1.26.0

// The module emd itself is the checkout around this folder: see ../go.work.
require github.com/stretchr/testify v1.12.1

require (
	go.yaml.in/yaml/v3 v3.0.5 // indirect
	golang.org/x/sys v0.49.0 // indirect
)
