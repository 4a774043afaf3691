module example.com/muster-network-lan

go 1.26.0

require github.com/musterhq/muster/plugins/sdk v0.0.0

require (
	github.com/musterhq/muster/api v0.0.0 // indirect
	golang.org/x/net v0.60.0 // indirect
	golang.org/x/sys v0.49.0 // indirect
	golang.org/x/text v0.42.0 // indirect
	google.golang.org/genproto/googleapis/api v0.0.0-20261019180522-ce908d29299b // indirect
	google.golang.org/genproto/googleapis/rpc v0.0.0-20261012220534-4341edf3f941 // indirect
	google.golang.org/grpc v1.85.0 // indirect
	google.golang.org/protobuf v1.36.12 // indirect
)

// Only in this repository: the modules as they lie in the tree. A plugin of
// your own requires released versions, and has no such lines.
replace (
	github.com/musterhq/muster/api => ../../api
	github.com/musterhq/muster/plugins/sdk => ../../plugins/sdk
)
