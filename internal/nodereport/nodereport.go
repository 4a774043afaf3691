// Package nodereport limits what a worker reports of its node and of its tasks. All
// daemons keep it in memory. A worker keeps to the limits; a dispatcher refuses a
// description that exceeds them, and clips statuses.
package nodereport

import (
	"fmt"
	"net/netip"
	"regexp"

	"google.golang.org/protobuf/proto"

	musterv1 "github.com/musterhq/muster/api/muster/v1"
)

// Limits of a node's description.
const (
	// MaxDescription is the greatest size of a description in bytes.
	MaxDescription = 256 << 10
	// MaxExecutors and the following limit the entries of lists.
	MaxExecutors        = 32
	MaxNetworkDrivers   = 8
	MaxNetworkEntries   = 32
	MaxKinds            = 16
	MaxCapabilities     = 256
	MaxLabels           = 256
	MaxGenericResources = 256
	// MaxName limits names, versions and the like, in bytes. It is also the limit of
	// the executor's own name of a task.
	MaxName = 256
	// MaxLabelValue limits the value of a label, in bytes.
	MaxLabelValue = 1 << 10
	// MaxExecutorMessage is the size that an executor's message is shortened to.
	MaxExecutorMessage = 1 << 10
	// MaxSchema limits the schema of payloads, in bytes.
	MaxSchema = 64 << 10
	// MaxPublicKey limits a node's key for encrypted networks, in bytes.
	MaxPublicKey = 64
	// MinDataPathPort is the lowest UDP port that nodes send the traffic of networks to.
	MinDataPathPort = 1024
)

// Limits of a task's status, in bytes except for the numbers of ports, networks, addresses
// and aliases.
const (
	// MaxStatusText limits messages and errors.
	MaxStatusText = 4 << 10
	// MaxContainers limits the containers of a task with a group, the main one included.
	// MaxContainerText limits the error and the output of a health check of each of them.
	MaxContainers    = 11
	MaxContainerText = 512
	// MaxHealthOutput limits the output of a health check.
	MaxHealthOutput = 1 << 10
	// MaxPorts limits the number of ports of a task, and MaxPortName their names.
	MaxPorts    = 256
	MaxPortName = 64
	// MaxNetworks limits the number of networks of a task. A task has at most one address
	// of each family and some further names on each of them.
	MaxNetworks  = 32
	MaxAddresses = 2
	MaxAliases   = 64
	// MaxNetworkName limits ids of networks, and names on them.
	MaxNetworkName = 255
)

// kindPattern is what the API server accepts as the kind of a runtime.
var kindPattern = regexp.MustCompile(`^[a-zA-Z0-9._-]{1,63}$`)

// Check returns an error that names the field if a description exceeds a limit.
func Check(d *musterv1.NodeDescription) error {
	if n := proto.Size(d); n > MaxDescription {
		return fmt.Errorf("description has %d bytes, at most %d are allowed", n, MaxDescription)
	}
	if n := len(d.Executors); n > MaxExecutors {
		return fmt.Errorf("description.executors has %d entries, at most %d are allowed: a node needs one for each kind of runtime", n, MaxExecutors)
	}
	for _, text := range []struct{ name, value string }{
		{"hostname", d.Hostname}, {"machine.id", d.GetMachine().GetId()},
		{"platform.os", d.GetPlatform().GetOs()}, {"platform.architecture", d.GetPlatform().GetArchitecture()},
		{"version", d.Version},
	} {
		if len(text.value) > MaxName {
			return fmt.Errorf("description.%s has %d bytes, at most %d are allowed", text.name, len(text.value), MaxName)
		}
	}
	if err := checkLabels(d.Labels); err != nil {
		return err
	}
	if err := CheckGenericResources("description.resources.generic", d.GetResources().GetGeneric()); err != nil {
		return err
	}
	if err := CheckGenericResources("description.machine.shared.generic", d.GetMachine().GetShared().GetGeneric()); err != nil {
		return err
	}
	for i, e := range d.Executors {
		if err := CheckExecutor(e); err != nil {
			return fmt.Errorf("description.executors[%d].%w", i, err)
		}
	}
	if n := len(d.NetworkDrivers); n > MaxNetworkDrivers {
		return fmt.Errorf("description.network_drivers has %d entries, at most %d are allowed", n, MaxNetworkDrivers)
	}
	for i, p := range d.NetworkDrivers {
		if err := CheckNetworkDriver(p); err != nil {
			return fmt.Errorf("description.network_drivers[%d].%w", i, err)
		}
	}
	return nil
}

// CheckDataPath returns an error that begins with the field if other nodes cannot send
// traffic to a node.
func CheckDataPath(p *musterv1.DataPath) error {
	addr, err := netip.ParseAddr(p.Address)
	switch {
	case err != nil, addr.Zone() != "", addr.Is4In6(), addr.IsUnspecified(), addr.IsMulticast(), addr == netip.AddrFrom4([4]byte{255, 255, 255, 255}):
		return fmt.Errorf("data_path.address is %.64q: want an IP address of the node", p.Address)
	// The ports below are those of services that all have to be able to use, such as 53.
	case p.Port < MinDataPathPort || p.Port > 65535:
		return fmt.Errorf("data_path.port is %d: want %d to 65535", p.Port, MinDataPathPort)
	case len(p.PublicKey) > MaxPublicKey:
		return fmt.Errorf("data_path.public_key has %d bytes, at most %d are allowed", len(p.PublicKey), MaxPublicKey)
	case p.EncryptedPort != 0 && p.EncryptedPort < MinDataPathPort || p.EncryptedPort > 65535:
		return fmt.Errorf("data_path.encrypted_port is %d: want %d to 65535, or 0 without a key", p.EncryptedPort, MinDataPathPort)
	default:
		return nil
	}
}

// CheckNetworkDriver returns an error that begins with the field if the description of a
// network plugin exceeds a limit.
func CheckNetworkDriver(d *musterv1.NetworkDriverDescription) error {
	for _, list := range []struct {
		name    string
		entries []string
		most    int
	}{{"drivers", d.Drivers, MaxNetworkEntries}, {"capabilities", d.Capabilities, MaxNetworkEntries}, {"missing", d.Missing, MaxNetworkEntries}} {
		if err := checkTexts(list.name, list.entries, list.most); err != nil {
			return err
		}
	}
	for _, text := range []struct{ name, value string }{{"name", d.Name}, {"version", d.Version}, {"checksum", d.Checksum}} {
		if len(text.value) > MaxName {
			return fmt.Errorf("%s has %d bytes, at most %d are allowed", text.name, len(text.value), MaxName)
		}
	}
	return nil
}

// checkTexts returns an error that names the field if a list exceeds a limit.
func checkTexts(field string, entries []string, most int) error {
	if n := len(entries); n > most {
		return fmt.Errorf("%s has %d entries, at most %d are allowed", field, n, most)
	}
	for i, text := range entries {
		if len(text) > MaxName {
			return fmt.Errorf("%s[%d] has %d bytes, at most %d are allowed", field, i, len(text), MaxName)
		}
	}
	return nil
}

// CheckExecutor returns an error that begins with the field if the description of an
// executor exceeds a limit. A schema that is too large is no such error.
func CheckExecutor(e *musterv1.ExecutorDescription) error {
	for _, list := range []struct {
		name    string
		entries []string
		most    int
	}{{"kinds", e.Kinds, MaxKinds}, {"capabilities", e.Capabilities, MaxCapabilities}} {
		if err := checkTexts(list.name, list.entries, list.most); err != nil {
			return err
		}
	}
	for i, kind := range e.Kinds {
		if !kindPattern.MatchString(kind) {
			return fmt.Errorf(`kinds[%d] is %.64q: want at most 63 letters, digits, "-", "_" and "."`, i, kind)
		}
	}
	for _, text := range []struct{ name, value string }{{"name", e.Name}, {"version", e.Version}, {"checksum", e.Checksum}} {
		if len(text.value) > MaxName {
			return fmt.Errorf("%s has %d bytes, at most %d are allowed", text.name, len(text.value), MaxName)
		}
	}
	return nil
}

func checkLabels(labels map[string]string) error {
	if n := len(labels); n > MaxLabels {
		return fmt.Errorf("description.labels has %d entries, at most %d are allowed", n, MaxLabels)
	}
	for key, value := range labels {
		if len(key) > MaxName {
			return fmt.Errorf("description.labels has a key of %d bytes, at most %d are allowed", len(key), MaxName)
		}
		if len(value) > MaxLabelValue {
			return fmt.Errorf("description.labels[%q] has %d bytes, at most %d are allowed", key, len(value), MaxLabelValue)
		}
	}
	return nil
}

// CheckGenericResources returns an error that names the field if a list of generic
// resources, whose own field is at, exceeds a limit.
func CheckGenericResources(at string, resources []*musterv1.GenericResource) error {
	if n := len(resources); n > MaxGenericResources {
		return fmt.Errorf("%s has %d entries, at most %d are allowed", at, n, MaxGenericResources)
	}
	for i, r := range resources {
		for _, text := range []struct{ name, value string }{{"kind", r.GetKind()}, {"named", r.GetNamed()}} {
			if len(text.value) > MaxName {
				return fmt.Errorf("%s[%d].%s has %d bytes, at most %d are allowed", at, i, text.name, len(text.value), MaxName)
			}
		}
	}
	return nil
}
