package emd

// What the default DirtyLimit is at most, and what memory is taken for where the
// OS does not tell.
const (
	maxDirtyLimit = 1 << 30
	unknownMemory = 1 << 30
)

// defaultDirtyLimit returns how many bytes of private memory an arena may hold
// when its options do not say: a quarter of the machine's memory, or half of
// the control group's limit if that is less, at most 1 GiB.
func defaultDirtyLimit() int64 {
	// A change may copy a page of the machine, of which a page of the file is counted.
	perOS := int64(max(1, osPageSize()/pageSize))
	return dirtyLimitFor(physicalMemory(), cgroupMemory()) / perOS
}

// dirtyLimitFor computes defaultDirtyLimit; 0 means unknown or no limit.
func dirtyLimitFor(memory, cgroup int64) int64 {
	if memory <= 0 {
		memory = unknownMemory
	}
	limit := min(memory/4, maxDirtyLimit)
	if cgroup > 0 {
		limit = min(limit, cgroup/2)
	}
	return limit
}
