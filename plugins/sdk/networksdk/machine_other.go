//go:build !linux

package networksdk

// EnterMachineNetwork does nothing: there are no network namespaces.
func EnterMachineNetwork() error { return nil }
