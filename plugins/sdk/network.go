package sdk

import "strings"

// ResolvConf returns the resolv.conf of a networked task. It is empty if the network names
// no name server: the task then uses those of its node.
func ResolvConf(network *Network) string {
	if len(network.GetNameservers()) == 0 {
		return ""
	}
	var text strings.Builder
	for _, server := range network.GetNameservers() {
		text.WriteString("nameserver " + server + "\n")
	}
	if search := network.GetSearch(); len(search) > 0 {
		text.WriteString("search " + strings.Join(search, " ") + "\n")
	}
	if options := network.GetOptions(); len(options) > 0 {
		text.WriteString("options " + strings.Join(options, " ") + "\n")
	}
	return text.String()
}
