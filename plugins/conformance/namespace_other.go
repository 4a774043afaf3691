//go:build !linux

package conformance

import "errors"

var errNoNamespaces = errors.New("network namespaces exist on Linux only")

func newNamespace(string, string) (string, func() error, error) { return "", nil, errNoNamespaces }

func interfacesIn(string) (map[string][]string, error) { return nil, errNoNamespaces }

func namespaceInode(string) uint64 { return 0 }
