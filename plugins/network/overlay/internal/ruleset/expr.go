//go:build linux

package ruleset

import (
	"encoding/binary"
	"net/netip"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"
)

// reg is the first of the 4-byte registers (NFT_REG32_00). Keys that consist of several
// values are put together from there on.
const reg = 8

// Values that the kernel's interface defines and the libraries do not.
const (
	statusDNAT       = 1 << 5 // IPS_DST_NAT
	typeLocal        = 2      // RTN_LOCAL
	portUnreachable4 = 3
	portUnreachable6 = 4
	echoRequest4     = 8
	echoRequest6     = 128
)

// family is what differs between rules of IPv4 and IPv6.
type family struct {
	table           nftables.TableFamily
	number          uint32
	length          uint32
	source, target  uint32
	address         nftables.SetDatatype
	icmp, echo      byte
	portUnreachable uint8
}

var (
	ipv4 = family{
		table: nftables.TableFamilyIPv4, number: unix.NFPROTO_IPV4, length: 4, source: 12, target: 16,
		address: nftables.TypeIPAddr, icmp: unix.IPPROTO_ICMP, echo: echoRequest4, portUnreachable: portUnreachable4,
	}
	ipv6 = family{
		table: nftables.TableFamilyIPv6, number: unix.NFPROTO_IPV6, length: 16, source: 8, target: 24,
		address: nftables.TypeIP6Addr, icmp: unix.IPPROTO_ICMPV6, echo: echoRequest6, portUnreachable: portUnreachable6,
	}
)

// words is how many 4-byte registers an address takes.
func (f family) words() uint32 { return f.length / 4 }

func (f family) loadTarget(register uint32) expr.Any {
	return &expr.Payload{DestRegister: register, Base: expr.PayloadBaseNetworkHeader, Offset: f.target, Len: f.length}
}

func (f family) loadSource(register uint32) expr.Any {
	return &expr.Payload{DestRegister: register, Base: expr.PayloadBaseNetworkHeader, Offset: f.source, Len: f.length}
}

// within matches an address that is loaded with a prefix.
func (f family) within(load expr.Any, p netip.Prefix) []expr.Any {
	mask := make([]byte, f.length)
	for i := range p.Bits() {
		mask[i/8] |= 0x80 >> (i % 8)
	}
	return []expr.Any{
		load,
		&expr.Bitwise{SourceRegister: 1, DestRegister: 1, Len: f.length, Mask: mask, Xor: make([]byte, f.length)},
		equal(1, p.Masked().Addr().AsSlice()),
	}
}

func (f family) nat(kind expr.NATType, port uint32) expr.Any {
	n := &expr.NAT{Type: kind, Family: f.number, RegAddrMin: reg, RegProtoMin: port}
	n.Specified = port != 0
	return n
}

func (f family) rejectPort() expr.Any {
	return &expr.Reject{Type: unix.NFT_REJECT_ICMP_UNREACH, Code: f.portUnreachable}
}

func equal(register uint32, data []byte) expr.Any {
	return &expr.Cmp{Op: expr.CmpOpEq, Register: register, Data: data}
}

func different(register uint32, data []byte) expr.Any {
	return &expr.Cmp{Op: expr.CmpOpNeq, Register: register, Data: data}
}

func meta(key expr.MetaKey, register uint32) expr.Any {
	return &expr.Meta{Key: key, Register: register}
}

// from matches packets that came by a link; a name that ends in "*" is a prefix.
func from(link string) []expr.Any { return byName(expr.MetaKeyIIFNAME, link, equal) }

func notFrom(link string) []expr.Any { return byName(expr.MetaKeyIIFNAME, link, different) }

// to matches packets that leave by a link.
func to(link string) []expr.Any { return byName(expr.MetaKeyOIFNAME, link, equal) }

func byName(key expr.MetaKey, link string, compare func(uint32, []byte) expr.Any) []expr.Any {
	name := []byte(link)
	if last := len(name) - 1; name[last] == '*' {
		name = name[:last]
	} else {
		name = append(name, make([]byte, unix.IFNAMSIZ-len(name))...)
	}
	return []expr.Any{meta(key, 1), compare(1, name)}
}

func protocol(number byte) []expr.Any {
	return []expr.Any{meta(expr.MetaKeyL4PROTO, 1), equal(1, []byte{number})}
}

func port(number uint16) []expr.Any {
	return []expr.Any{loadPort(1), equal(1, binary.BigEndian.AppendUint16(nil, number))}
}

func loadPort(register uint32) expr.Any {
	return &expr.Payload{DestRegister: register, Base: expr.PayloadBaseTransportHeader, Offset: 2, Len: 2}
}

// loadVNI loads the VXLAN network identifier. The fourth byte of the register is 0.
func loadVNI(register uint32) expr.Any {
	return &expr.Payload{DestRegister: register, Base: expr.PayloadBaseTransportHeader, Offset: 12, Len: 3}
}

// ping matches requests of the program ping.
func (f family) ping() []expr.Any {
	return append(protocol(f.icmp),
		&expr.Payload{DestRegister: 1, Base: expr.PayloadBaseTransportHeader, Offset: 0, Len: 1},
		equal(1, []byte{f.echo}))
}

// state matches packets whose connection is in one of the given states.
func state(bits uint32) []expr.Any { return bitsSet(expr.CtKeySTATE, bits, different) }

// translated matches packets of connections whose destination was replaced.
func translated() []expr.Any { return bitsSet(expr.CtKeySTATUS, statusDNAT, different) }

func notTranslated() []expr.Any { return bitsSet(expr.CtKeySTATUS, statusDNAT, equal) }

func bitsSet(key expr.CtKey, bits uint32, compare func(uint32, []byte) expr.Any) []expr.Any {
	return []expr.Any{
		&expr.Ct{Key: key, Register: 1},
		&expr.Bitwise{SourceRegister: 1, DestRegister: 1, Len: 4, Mask: native(bits), Xor: native(0)},
		compare(1, native(0)),
	}
}

func native(v uint32) []byte { return binary.NativeEndian.AppendUint32(nil, v) }

func find(set string, register uint32) expr.Any {
	return &expr.Lookup{SourceRegister: register, SetName: set}
}

// missing matches what a set does not have.
func missing(set string, register uint32) expr.Any {
	return &expr.Lookup{SourceRegister: register, SetName: set, Invert: true}
}

// replace puts what a map holds for a key into the place of the key.
func replace(set string) expr.Any {
	return &expr.Lookup{SourceRegister: reg, DestRegister: reg, IsDestRegSet: true, SetName: set}
}

// jump goes where a verdict map says for a key.
func jump(set string, register uint32) expr.Any {
	return &expr.Lookup{SourceRegister: register, DestRegister: unix.NFT_REG_VERDICT, IsDestRegSet: true, SetName: set}
}

func random(register, below uint32) expr.Any {
	return &expr.Numgen{Register: register, Modulus: below, Type: unix.NFT_NG_RANDOM}
}

func accept() expr.Any { return &expr.Verdict{Kind: expr.VerdictAccept} }

func drop() expr.Any { return &expr.Verdict{Kind: expr.VerdictDrop} }

func goTo(chain string) expr.Any { return &expr.Verdict{Kind: expr.VerdictGoto, Chain: chain} }

func reset() expr.Any { return &expr.Reject{Type: unix.NFT_REJECT_TCP_RST} }

// rule puts a rule together.
func rule(name string, parts ...any) Rule {
	r := Rule{Name: name}
	for _, p := range parts {
		switch p := p.(type) {
		case []expr.Any:
			r.Exprs = append(r.Exprs, p...)
		case expr.Any:
			r.Exprs = append(r.Exprs, p)
		}
	}
	return r
}
