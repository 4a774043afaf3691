package cli

import (
	"strconv"
	"strings"

	"google.golang.org/protobuf/proto"

	musterv1 "github.com/musterhq/muster/api/muster/v1"
)

const fileExample = "NAME, or source=NAME,target=/path,uid=0,gid=0,mode=0400,on-change=restart"

func parseSecret(v string) (*musterv1.SecretReference, error) {
	return parseFile("secret", "secretName", v, &musterv1.SecretReference{}, func(r *musterv1.SecretReference) *musterv1.FileTarget {
		if r.File == nil {
			r.File = &musterv1.FileTarget{}
		}
		return r.File
	})
}

func parseConfig(v string) (*musterv1.ConfigReference, error) {
	return parseFile("config", "configName", v, &musterv1.ConfigReference{}, func(r *musterv1.ConfigReference) *musterv1.FileTarget {
		if r.GetFile() == nil {
			r.Target = &musterv1.ConfigReference_File{File: &musterv1.FileTarget{}}
		}
		return r.GetFile()
	})
}

// parseFile reads how a task gets a secret or config. Name is the field with its name, and
// file returns its target.
func parseFile[M proto.Message](flag, name, v string, into M, file func(M) *musterv1.FileTarget) (M, error) {
	var none M
	if !strings.Contains(v, "=") {
		v = "source=" + v
	}
	var pairs []string
	mode, named := "", false
	for part := range strings.SplitSeq(v, ",") {
		if text, ok := strings.CutPrefix(part, "mode="); ok {
			mode = text
			continue
		}
		key, text, _ := strings.Cut(part, "=")
		named = named || (key == "source" || key == "src") && text != ""
		pairs = append(pairs, part)
	}
	if !named {
		return none, usage("--%s: %q has no source; want %s", flag, v, fileExample)
	}
	err := parsePairs(strings.Join(pairs, ","), into, fileExample, map[string]string{
		"source": name, "src": name, "target": "file.name", "dst": "file.name", "uid": "file.uid", "gid": "file.gid",
		"on-change": "onChange.action", "signal": "onChange.signal",
	})
	if err != nil {
		return none, usage("--%s: %q: %w", flag, v, err)
	}
	if mode != "" {
		bits, err := strconv.ParseUint(mode, 8, 32)
		if err != nil || bits > 0o777 {
			return none, usage("--%s: %q: invalid mode %q: want permission bits in octal, such as 0400", flag, v, mode)
		}
		file(into).Mode = uint32(bits)
	}
	return into, nil
}
