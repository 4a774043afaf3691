package compose

import (
	"fmt"
	"path/filepath"
	"strconv"

	"github.com/compose-spec/compose-go/v2/types"

	musterv1 "github.com/musterhq/muster/api/muster/v1"
)

// Options of networks that Docker's drivers have.
const (
	mtuOption       = "com.docker.network.driver.mtu"
	encryptedOption = "encrypted"
	cniDriver       = "cni"
)

// nodeNetworks are the networks "host" and "none", which are not of the cluster.
var nodeNetworks = map[string]bool{"host": true, "none": true}

func (c *converter) network(key string, n types.NetworkConfig) *musterv1.NetworkSpec {
	path := []string{"networks", key}
	if n.External {
		if !nodeNetworks[n.Name] {
			c.external(Network, n.Name)
		}
		return nil
	}
	c.checkName(path, n.Name, objectName, maxName)
	spec := &musterv1.NetworkSpec{
		Name: n.Name, Labels: c.labels(n.Labels), Internal: n.Internal, Attachable: n.Attachable,
		Ipv6Enabled: n.EnableIPv6 != nil && *n.EnableIPv6,
	}
	if n.EnableIPv4 != nil && !*n.EnableIPv4 {
		c.unsupported(append(path, "enable_ipv4"), "", "networks always have IPv4 addresses")
	}
	switch n.Driver {
	case "", "default":
	case "overlay", "bridge", cniDriver:
		spec.Driver = &musterv1.Driver{Name: n.Driver}
	case "host", "none", "null":
		c.invalid(append(path, "driver"), "", "a network of the driver %q needs no entry here; set network_mode in the service instead", n.Driver)
	default:
		c.unsupported(append(path, "driver"), "", fmt.Sprintf("there is no driver %q; want overlay, bridge or cni", n.Driver))
	}
	c.networkOptions(append(path, "driver_opts"), n, spec)
	for _, pool := range n.Ipam.Config {
		if spec.Ipam == nil {
			spec.Ipam = &musterv1.IPAMOptions{}
		}
		spec.Ipam.Configs = append(spec.Ipam.Configs, &musterv1.IPAMConfig{
			Subnet: pool.Subnet, Range: pool.IPRange, Gateway: pool.Gateway, Reserved: pool.AuxiliaryAddresses,
		})
	}
	return spec
}

func (c *converter) networkOptions(path []string, n types.NetworkConfig, spec *musterv1.NetworkSpec) {
	for _, name := range sorted(n.DriverOpts) {
		at, value := append(path[:len(path):len(path)], name), n.DriverOpts[name]
		switch {
		case name == mtuOption:
			mtu, err := strconv.ParseUint(value, 10, 16)
			if err != nil {
				c.invalid(at, "", "invalid MTU %q: want a number of bytes", value)
			}
			spec.Mtu = uint32(mtu)
		case name == encryptedOption:
			on, err := strconv.ParseBool(value)
			if err != nil && value != "" {
				c.invalid(at, "", "invalid value %q: want true or false", value)
			}
			spec.Encrypted = on || value == ""
		case n.Driver == cniDriver && name == "config":
			spec.Driver.Options = map[string]string{name: value}
		default:
			c.unsupported(at, "", "no network driver of Muster has this option")
		}
	}
}

func (c *converter) secret(key string, s types.FileObjectConfig) *musterv1.SecretSpec {
	path := []string{"secrets", key}
	if s.External {
		c.external(Secret, s.Name)
		return nil
	}
	c.checkName(path, s.Name, dataName, maxDataName)
	spec := &musterv1.SecretSpec{Name: s.Name, Labels: c.labels(s.Labels), Templating: driver(s.TemplateDriver, nil), Driver: driver(s.Driver, s.DriverOpts)}
	if spec.Driver == nil {
		spec.Data = c.data(path, s, maxSecret)
	}
	return spec
}

func (c *converter) config(key string, s types.FileObjectConfig) *musterv1.ConfigSpec {
	path := []string{"configs", key}
	if s.External {
		c.external(Config, s.Name)
		return nil
	}
	c.checkName(path, s.Name, dataName, maxDataName)
	return &musterv1.ConfigSpec{Name: s.Name, Labels: c.labels(s.Labels), Templating: driver(s.TemplateDriver, nil), Data: c.data(path, s, maxConfig)}
}

func driver(name string, options map[string]string) *musterv1.Driver {
	if name == "" {
		return nil
	}
	return &musterv1.Driver{Name: name, Options: options}
}

// data returns the content of a secret or a config.
func (c *converter) data(path []string, s types.FileObjectConfig, most int) []byte {
	var data []byte
	from := "content"
	switch {
	case s.File != "":
		from = "file"
		content, err := c.index.open(filepath.Clean(s.File), most)
		if err != nil {
			c.invalid(append(path, from), "", "%v", err)
			return nil
		}
		data = content
	case s.Environment != "":
		from = "environment"
		value, ok := c.vars[s.Environment]
		if !ok {
			c.invalid(append(path, from), "", "the variable %s is not set", s.Environment)
			return nil
		}
		data = []byte(value)
	default:
		data = []byte(s.Content)
	}
	switch {
	case len(data) == 0:
		c.invalid(append(path, from), "", "there is no data; at least 1 byte is needed")
	case len(data) > most:
		c.invalid(append(path, from), "", "has %d bytes; at most %d KiB are allowed", len(data), most>>10)
	}
	return data
}
