// A cohort as a Nextflow process, a shard per task:
//   nextflow run docs/cohort.nf --slides "$PWD/cohort.csv" --out "$PWD/maps" --bundle "$PWD/mclst-bundle" --shards 8 -resume
// Paths are absolute, since the maps are written where they stay: a task that is tried again finds what it finished.
params.slides = null
params.out = null
params.bundle = null
params.shards = 8

process infer {
    cpus 8
    memory '16 GB'
    // 130-143: the task was ended from outside. 6: this node lacks memory or a GPU, another may not.
    errorStrategy { task.exitStatus in ((130..145) + [6, 104, 175]) ? 'retry' : 'finish' }
    maxRetries 2

    input:
    val shard

    output:
    val shard

    // 3: some slides failed, and are named in the shard's report; trying again would not mend them.
    script:
    """
    status=0
    mclst-infer --slides '${params.slides}' --out '${params.out}' --bundle '${params.bundle}' \
        --shard ${shard}/${params.shards} --workers ${task.cpus} || status=\$?
    [ \$status -eq 3 ] || exit \$status
    """
}

workflow {
    infer(Channel.of(1..params.shards))
}
